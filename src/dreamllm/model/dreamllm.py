"""DreamLLM: a causal language model that reads pictures through CLIP and draws them through a diffusion decoder.

One forward pass over a packed batch gives both losses (paper section 3). Patches and dream queries are ordinary
positions under the causal mask. The last hidden states of the queries, projected by the condition projector, replace
the text encoder's output in the denoiser. The parts are unchanged models of transformers and diffusers.

Elsewhere: decoders (`decoders/`), condition projectors (`connector.py`), tokens (`data/layout.py`), generation
(`generate.py`), loading of foundations (`build.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from dreamllm.data.packing import positions_of_targets
from dreamllm.model import decoders, diffusion, processor  # noqa: F401  for AutoProcessor
from dreamllm.model.alignment import alignment_targets
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.connector import Connector, condition_projector
from dreamllm.model.eyes import make_projector, patch_features
from dreamllm.model.output import DreamLLMOutput
from dreamllm.model.packed import (
    fill_slots,
    find_slots,
    gather_slots,
    head_logits,
    in_chunks,
    packed_attention_mask,
    packed_lengths,
    with_gradient,
)
from dreamllm.model.text_only import TextGenerationMixin

UNFROZEN = ("language_model", "visual_projector", "dream_queries", "condition_projector")  # in I-GPT and SFT
TRAINABLE = (*UNFROZEN, "unet", "transformer")  # a model has one of the last two: its denoiser


class DreamLLMForConditionalGeneration(PreTrainedModel, TextGenerationMixin):
    """DreamLLM. Its `generate` is that of transformers, for text; `DreamLLMProcessor.prompts` makes the inputs.

    Where the model begins to draw, `generate` raises PictureDue; `dreamllm.model.generate` draws.
    """

    config: DreamLLMConfig
    config_class = DreamLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # transformers' Trainer averages the losses of its micro-batches
    # in fp16; not quantised. Regular expressions: GPT-2 has a `language_model.transformer`
    _keep_in_fp32_modules = ("vae", "unet", "^transformer", "visual_projector", "condition_projector")
    _keep_in_fp32_modules_strict = ("vae",)  # in bf16 too: its pictures get stains

    def __init__(self, config: DreamLLMConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = self.language_model.get_input_embeddings().embedding_dim
        self.vision_model = AutoModel.from_config(config.vision_config)
        self.vae = getattr(diffusers, self.decoder.AUTOENCODER).from_config(config.vae_config)
        denoiser_class = getattr(diffusers, decoders.kind_of(config.denoiser_config)[0])
        self.add_module(config.denoiser, denoiser_class.from_config(config.denoiser_config))
        self.visual_projector = make_projector(config.visual_projector_type, config.vision_config.hidden_size, width)
        self.dream_queries = nn.Parameter(torch.empty(1, config.num_dream_queries, width))
        self.condition_projector = condition_projector(config, width)
        self.pictures_at_a_time: int | None = None  # in CLIP, VAE and denoiser; None: all. Fewer save memory, cost time
        self.post_init()
        self.train_only(UNFROZEN)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        """As in transformers; CLIP, VAE and denoiser are frozen, as in the paper."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        model.train_only(UNFROZEN)
        return loaded

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cu_seq_lens: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        read_pixels: torch.Tensor | None = None,
        read_slots: torch.Tensor | None = None,
        draw_pixels: torch.Tensor | None = None,
        draw_slots: torch.Tensor | None = None,
        read_features: torch.Tensor | None = None,
        draw_moments: torch.Tensor | None = None,
        target_pixels: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        noise: diffusion.DiffusionNoise | None = None,
        generator: torch.Generator | None = None,
        num_targets: int | None = None,
        num_pictures: int | None = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> DreamLLMOutput:
        """Losses of a packed batch (`packing.Batch.inputs`) or of padded texts; logits, unless it trains on losses.

        input_ids, labels, position_ids (B, T).  cu_seq_lens, target_positions: `packing.document_boundaries` of
        position_ids and `positions_of_targets` of labels; a GPU has to be waited for if they are None.
        attention_mask: for padded, unpacked texts only.  pixel_values or
        read_pixels (N, 3, Hc, Wc): embedded at the P positions from each of read_slots (N, 2).  draw_slots (M, 2): the
        dream queries are at the Q positions from each. Slots that are None are found in input_ids.  draw_pixels
        (M, 3, Hd, Wd) in [-1, 1]: targets of the diffusion loss.  noise: its random numbers; drawn from `generator` if
        None.  read_features (N, P, Dv), draw_moments (M, ...): `patch_features` and `latent_moments`, in place of
        the pixels.  target_pixels (M, 3, Hc, Wc) or target_features: the pictures to draw, prepared for CLIP; needed by
        the alignment loss only.  kwargs: of the language model, such as output_hidden_states

        num_targets, num_pictures: numbers of the whole batch, if this is a micro-batch of it. The losses are divided by
        them, so that those of micro-batches add up to the batch's, however it is split. (The official code averages
        within each process, which gives targets and pictures more weight where there are few of them.)
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("the model needs input_ids or inputs_embeds")
            read_pixels = pixel_values if read_pixels is None else read_pixels
            starts = self.config.im_start_token_id, self.config.dream_start_token_id
            read_slots, draw_slots = (
                find_slots(input_ids, start, self.config.im_patch_token_id) if slots is None else slots
                for start, slots in zip(starts, (read_slots, draw_slots), strict=True)
            )
            inputs_embeds = self.embed(input_ids, read_pixels, read_slots, draw_slots, read_features)
        if attention_mask is None and past_key_values is None and position_ids is not None:
            attention_mask = packed_attention_mask(self.language_model.config, inputs_embeds, position_ids)
            kwargs = packed_lengths(self.language_model.config, position_ids, cu_seq_lens) | kwargs
        outputs = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # (B, T, D)
        losses: dict[str, torch.Tensor] = {}
        with_losses = not (labels is None and draw_pixels is None and draw_moments is None)
        if labels is not None and self.config.language_loss_weight:
            losses["language_loss"] = self.language_loss(hidden, labels, num_targets, target_positions)
        if with_losses and draw_slots is not None:
            states = gather_slots(hidden, draw_slots, self.config.num_dream_queries)
            if self.config.diffusion_loss_weight:
                losses["diffusion_loss"] = self.diffusion_loss(
                    states, draw_pixels, noise, generator, num_pictures=num_pictures, moments=draw_moments
                )
            if self.config.alignment_loss_weight:
                losses["alignment_loss"] = self.alignment_loss(states, target_pixels, num_pictures, target_features)
        weighted = [getattr(self.config, f"{name}_weight") * loss for name, loss in losses.items()]
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return DreamLLMOutput(
            loss=sum(weighted) if weighted else None,
            **losses,
            logits=None if with_losses and self.training else self.logits(hidden[:, kept]),
            last_hidden_state=hidden,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def embed(
        self,
        input_ids: torch.Tensor,
        read_pixels: torch.Tensor | None = None,
        read_slots: torch.Tensor | None = None,
        draw_slots: torch.Tensor | None = None,
        read_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings (B, T, D) of tokens, with pictures and dream queries in their slots; arguments as in `forward`."""
        embeds = self.get_input_embeddings()(input_ids)
        if read_slots is not None:
            embeds = fill_slots(embeds, read_slots, self.read(read_pixels, read_features))
        if draw_slots is not None:
            embeds = fill_slots(embeds, draw_slots, self.dream_queries.expand(len(draw_slots), -1, -1))
        return embeds

    def read(self, pixels: torch.Tensor | None, features: torch.Tensor | None = None) -> torch.Tensor:
        """Embed pictures (N, 3, Hc, Wc) for the language model, (N, P, D); an empty tensor for None.

        The projector is called in any case, so that it has gradients in every process of a distributed training.
        features: `patch_features` of the pictures, in place of pixels.
        """
        if features is None and pixels is not None:
            features = in_chunks(self.patch_features, self.pictures_at_a_time, pixels)
        if features is None:
            width = self.config.vision_config.hidden_size
            features = self.dream_queries.new_zeros(0, self.config.num_patches, width)
        return self.visual_projector(features.to(next(self.visual_projector.parameters()).dtype))

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Conditions (M, R, Dc) of the denoiser from query states (M, Q, D); R is Q, or Q + 1 with a pooled one."""
        return self.condition_projector(states.to(next(self.condition_projector.parameters()).dtype))

    @torch.no_grad()  # CLIP is frozen throughout
    def patch_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """CLIP's features (N, P, Dv) of pictures (N, 3, Hc, Wc): the visual projector's input."""
        return patch_features(self.vision_model, pixels, self.config.vision_feature_layer)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of the next token from last hidden states (..., D)."""
        return head_logits(self.language_model, hidden)

    def language_loss(
        self, hidden: torch.Tensor, labels: torch.Tensor, count: int | None = None, at: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross entropy of the next token, averaged over the targets. Computes their logits only, to save memory.

        hidden (B, T, D), labels (B, T); count: of the targets to divide by; at: `positions_of_targets` of the labels.
        """
        positions = positions_of_targets(labels) if at is None else at
        logits = self.logits(hidden.flatten(0, 1)[positions])  # (number of targets, V)
        total = F.cross_entropy(logits.float(), labels.flatten()[positions + 1], reduction="sum")
        return total / max(1, len(positions) if count is None else count)

    def diffusion_loss(
        self,
        states: torch.Tensor,
        pixels: torch.Tensor | None,
        noise: diffusion.DiffusionNoise | None = None,
        generator: torch.Generator | None = None,
        null_states: torch.Tensor | None = None,
        num_pictures: int | None = None,
        moments: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of denoising M pictures (M, 3, Hd, Wd), conditioned on query states (M, Q, D); zero for no pictures.

        Conditions are dropped in training mode only, and replaced by `null_states` (1, Q, D), computed if None.
        moments: `latent_moments` of the pictures, in place of pixels.  noise: of K draws per picture; each picture is
        denoised K times under its condition, and the loss is the mean over the draws.
        """
        config = self.config
        drops = self.training and config.condition_dropout > 0
        if drops and null_states is None:  # also without pictures: with sharded parameters, all
            null_states = self.null_states()  # processes must call the language model equally often
        if moments is None and pixels is not None:
            moments = in_chunks(self.latent_moments, self.pictures_at_a_time, pixels)
        if moments is None:  # zero, with all trained parameters in the graph
            unused = [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad]
            unused += [] if null_states is None else [null_states]
            return self.project(states[:0]).sum() + sum(0 * tensor.sum() for tensor in unused)
        if noise is None:
            noise = self.draw_noise(len(moments), generator)
        noise = noise.to(moments.device)
        draws = len(noise.timesteps) // len(moments)
        moments = moments.repeat_interleave(draws, dim=0)  # (M K, ...)
        states = states.repeat_interleave(draws, dim=0)  # (M K, Q, D)
        if noise.dropped is not None:
            null_states = self.null_states() if null_states is None else null_states
            states = diffusion.drop_conditions(states, null_states, noise.dropped)
        conditions = self.project(states)

        latents = self.decoder.latents_of(self.vae, moments, noise.posterior)  # (M K, C, h, w)
        noisy, target = self.decoder.noisy_and_target(config, latents, noise)

        def errors_of(conditions: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor, target: torch.Tensor):
            return diffusion.squared_errors(self.denoise(noisy, times, conditions), target)

        is_trained = any(parameter.requires_grad for parameter in self.denoiser.parameters())
        in_parts = partial(in_chunks, recompute=True) if is_trained else with_gradient
        errors = in_parts(errors_of, self.pictures_at_a_time, conditions, noisy, noise.timesteps, target)
        weights = self.decoder.loss_weights(config, noise.timesteps)
        return diffusion.mean_error(errors, weights, num_pictures and num_pictures * draws)

    def alignment_loss(
        self,
        states: torch.Tensor,
        pixels: torch.Tensor | None,
        num_pictures: int | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean squared error of the conditions, from query states (M, Q, D), to CLIP features of the pictures to draw.

        pixels (M, 3, Hc, Wc), or `features`, their `patch_features`; zero for no pictures. Condition dropout does not
        apply. Raises ValueError if both are None.
        """
        conditions = self.project(states)[:, : self.config.num_dream_queries]  # (M, Q, Dc), no pooled one
        if not len(states):
            return conditions.sum()
        if features is None and pixels is not None:
            features = in_chunks(self.patch_features, self.pictures_at_a_time, pixels)
        if features is None:
            raise ValueError("the alignment loss needs target_pixels: collate the batch with align=True")
        targets = alignment_targets(features, self.config.num_dream_queries)
        return diffusion.mean_error(diffusion.squared_errors(conditions, targets), count=num_pictures)

    def draw_noise(self, count: int, generator: torch.Generator | None = None) -> diffusion.DiffusionNoise:
        """Draw the random numbers of the diffusion loss of `count` pictures, with the options of the configuration.

        Those of picture n are at n K to (n + 1) K - 1, where K is `noise_draws`. No condition is dropped in evaluation.
        """
        return decoders.draw_noise(self.config, count, generator, drops=self.training)

    @torch.no_grad()  # the VAE is frozen throughout
    def latent_moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the VAE makes of pictures (M, 3, Hd, Wd), in fp32 (M, ...): a posterior's statistics, or latents."""
        return self.decoder.encode(self.vae, pixels)

    def denoise(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """The denoiser's prediction for noisy latents (M, C, h, w) and conditions (M, R, Dc): (M, C, h, w) in fp32."""
        dtype = next(self.denoiser.parameters()).dtype  # diffusers' own property looks at all of them
        return self.decoder.predict(self, noisy.to(dtype), timesteps, conditions.to(dtype)).float()

    def null_states(self) -> torch.Tensor:
        """Query states (1, Q, D) of an empty prompt, `<s> DREAM`, for condition dropout and guidance."""
        config = self.config
        ids = [config.bos_token_id, config.dream_start_token_id, *[config.im_patch_token_id] * config.num_dream_queries]
        slots = torch.tensor([[0, 2]], device=self.device)
        embeds = self.embed(torch.tensor([ids], device=self.device), draw_slots=slots)
        lengths = packed_lengths(self.language_model.config, torch.arange(len(ids), device=self.device)[None])
        hidden = self.language_model.base_model(inputs_embeds=embeds, use_cache=False, **lengths).last_hidden_state
        return gather_slots(hidden, slots, config.num_dream_queries)

    @property
    def decoder(self) -> decoders.Decoder:
        """The module with the functions of this model's decoder."""
        return self.config.diffusion_decoder

    @property
    def denoiser(self) -> Any:
        """The UNet or the transformer, which is also an attribute of that name."""
        return getattr(self, self.config.denoiser)

    def train_only(self, parts: Iterable[str]) -> None:
        """Make exactly these parts require gradients. CLIP and the VAE cannot be trained.

        Raises ValueError for a part that is not in TRAINABLE, or not in the model.
        """
        parts, trainable = set(parts), [part for part in TRAINABLE if hasattr(self, part)]
        if unknown := parts - set(trainable):
            raise ValueError(f"cannot train {', '.join(sorted(unknown))}; trainable are {', '.join(trainable)}")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in parts and parameter.is_floating_point())  # not quantised

    def train(self, mode: bool = True) -> DreamLLMForConditionalGeneration:
        """As in torch, but CLIP and the VAE stay in evaluation mode."""
        super().train(mode)
        self.vision_model.eval()
        self.vae.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the dream queries and the projectors; the latter as torch does, like the official runs."""
        if module is self:
            init.normal_(self.dream_queries, std=getattr(self.config.text_config, "initializer_range", 0.02))
        elif isinstance(module, Connector):
            init.constant_(module.norm.weight, module.scale)
        elif isinstance(module, nn.Linear) and module in {
            *self.visual_projector.modules(),
            *self.condition_projector.modules(),
        }:
            module.reset_parameters()


for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    getattr(transformers, auto).register(DreamLLMConfig, DreamLLMForConditionalGeneration)
