"""The configuration of a DreamLLM model: its parts, special tokens and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

if TYPE_CHECKING:
    from dreamllm.model.decoders import Decoder


class DreamLLMConfig(PreTrainedConfig):
    """Sub-configurations of language model (any causal one of transformers), eye, VAE, denoiser and noise schedule.

    num_dream_queries: Q, positions whose last hidden states condition the denoiser (64 in the paper)
    connector_layers: of the transformer that is the condition projector (`connector.py`); 0: it is linear, as in the
        paper
    vision_feature_layer: index into the eye's hidden states, as in transformers (-2: output of the last layer but one)
    visual_projector_type: linear (the paper's) or mlp (LLaVA-1.5's), see `eyes.make_projector`
    read_size: side in pixels of a picture that is read, where it is another than the eye's own image_size
    bos_token_id ... dream_end_token_id: ids in the language model's vocabulary; read from the tokenizer, never assumed
    language_loss_weight, diffusion_loss_weight: loss = language + 10 * diffusion in the paper's I-GPT and SFT
    alignment_loss_weight: of the loss in `alignment.py`; 0 except in arms of comparison
    noise_draws, noise_offset, input_perturbation, stratified_timesteps, timestep_shift, snr_gamma: options of the
        diffusion loss, all off in the paper (one draw)
    condition_dropout: fraction of pictures trained with the null condition `<s> DREAM`, for classifier-free guidance
    vae_config, scheduler_config: as in the config.json files of a folder of diffusers; and either unet_config or
        transformer_config, of the denoiser, which chooses the decoder (`decoders/`)
    """

    model_type = "dreamllm"
    keys_to_ignore_at_inference = [  # by transformers' Trainer, whose metrics get the rest beside the labels
        *("language_loss", "diffusion_loss", "alignment_loss"),
        *("last_hidden_state", "past_key_values", "hidden_states", "attentions"),
    ]
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
    }

    text_config: Any = None  # a dict becomes a configuration of transformers when the model's is made
    vision_config: Any = None
    vae_config: Any = None
    unet_config: Any = None
    transformer_config: Any = None
    scheduler_config: Any = None
    num_dream_queries: int = 64
    connector_layers: int = 0
    vision_feature_layer: int = -2
    visual_projector_type: str = "linear"
    read_size: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    im_patch_token_id: int | None = None
    im_start_token_id: int | None = None
    im_end_token_id: int | None = None
    dream_start_token_id: int | None = None
    dream_end_token_id: int | None = None
    language_loss_weight: float = 1.0
    diffusion_loss_weight: float = 10.0
    alignment_loss_weight: float = 0.0
    noise_draws: int = 1
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    stratified_timesteps: bool = False
    timestep_shift: float = 1.0
    snr_gamma: float | None = None
    condition_dropout: float = 0.0
    tie_word_embeddings: bool = False  # that of the language model is in text_config

    def __post_init__(self, **kwargs: Any) -> None:
        """As in transformers; registers the model, so that an Auto class that has read a configuration knows it."""
        from dreamllm.model import dreamllm  # noqa: F401  which needs this class

        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """P, the number of the eye's patches of a picture that is read."""
        return num_patches(self.vision_config, self.read_size)

    @property
    def denoiser(self) -> Literal["unet", "transformer"]:
        """Name of the denoiser among the parts of the model, as in diffusers' pipelines."""
        return "transformer" if self.transformer_config else "unet"

    @property
    def denoiser_config(self) -> Any:
        """The configuration of UNet or transformer."""
        return self.transformer_config or self.unet_config

    @property
    def diffusion_decoder(self) -> Decoder:
        """The module with the functions of the decoder. Raises DecoderProblem if there is none for the denoiser."""
        from dreamllm.model import decoders  # with diffusers, which a configuration does not need

        return decoders.decoder_of(self.denoiser_config)

    @property
    def draw_size(self) -> int:
        """Side of a drawn picture in pixels: side of the latents times the VAE's scale factor."""
        return self.denoiser_config["sample_size"] * self.diffusion_decoder.pixels_per_latent(self)


def num_patches(config: PreTrainedConfig, side: int | None = None) -> int:
    """P, patches of a square picture of `side` pixels; by default of the size that the eye was trained with."""
    return ((side or config.image_size) // config.patch_size) ** 2


AutoConfig.register(DreamLLMConfig.model_type, DreamLLMConfig)
