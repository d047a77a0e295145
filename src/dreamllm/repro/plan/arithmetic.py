"""The arithmetic of a plan as pure functions: documents, tokens, FLOPs, memory, time. Imports neither torch nor models.

All results are estimates. The formulas are in the docstrings. Numbers that are in no configuration (the length of a
set's documents, the speed of a GPU) are in paper/assumptions.yaml and are printed with every plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dreamllm.config.machine import Machine, checkpointed
from dreamllm.config.stages import Stage
from dreamllm.data.layout import Mode

FP32, BF16 = 4, 2  # bytes
ADAM = 2 * FP32  # two moments per trained parameter
ADAM_8BIT = 2 * (1 + FP32 / 256)  # the same in 8 bits, with a scale in fp32 for 256 of them
BOUNDARY_TOKENS = 2  # of a document: <s>, </s>; of a picture: <im_start>, <im_end> or <dream_start>, <dream_end>
Layout = Literal["text", "pair", "interleaved", "conversation"]  # of the documents of a set
RESERVED = 2e9  # bytes of a GPU for CUDA, its libraries and fragmentation


# ---- documents -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentKind:
    """The average document of a shard set (paper/assumptions.yaml).

    text: tokens of text.  pictures: pictures that are read, drawn or both, depending on the mode.  shown: pictures of
    the user, which are only read.  prompt: share of the text that is not a target of the language loss.
    """

    layout: Layout
    text: float
    pictures: float = 0
    shown: float = 0
    prompt: float = 0


@dataclass(frozen=True)
class Load:
    """Tokens, targets of the language loss, pictures read and pictures drawn, of a document or of a step."""

    tokens: float
    targets: float
    read: float
    drawn: float

    def __mul__(self, factor: float) -> Load:
        return Load(self.tokens * factor, self.targets * factor, self.read * factor, self.drawn * factor)

    def __add__(self, other: Load) -> Load:
        return Load(
            self.tokens + other.tokens,
            self.targets + other.targets,
            self.read + other.read,
            self.drawn + other.drawn,
        )


def document_load(kind: DocumentKind, mode: Mode, read_share: float, patches: int, queries: int) -> Load:
    """The average document in the layout of `data/layout.py`, in a stage of this mode.

    A picture that is read takes patches + 2 tokens, one that is drawn queries + 2. In joint mode a pair is read with
    probability `read_share` and drawn otherwise; a drawn pair has no targets. Other pictures are drawn, then read.
    """
    reads, draws = mode != "creation", mode != "comprehension"
    if kind.layout == "pair":
        read = {"comprehension": 1.0, "creation": 0.0, "joint": read_share}[mode]
        drawn, with_targets = 1 - read, read  # share of the documents whose text is a target
    else:
        read, drawn, with_targets = kind.shown + reads * kind.pictures, draws * kind.pictures, 1.0
    text = kind.text + BOUNDARY_TOKENS
    tokens = text + read * (patches + BOUNDARY_TOKENS) + drawn * (queries + BOUNDARY_TOKENS)
    return Load(tokens, with_targets * (1 - kind.prompt) * kind.text, read, drawn)


def mixture_load(stage: Stage, kinds: Mapping[str, DocumentKind], patches: int, queries: int) -> Load:
    """The average document of a stage's mixture; its weights are shares of documents."""
    total, mean = sum(stage.mixture.values()), Load(0, 0, 0, 0)
    for name, weight in stage.mixture.items():
        load = document_load(kinds[name], stage.mode, stage.read_share, patches, queries)
        mean = mean + load * (weight / total)
    return mean


def documents_per_step(stage: Stage, mean: Load, fill: float) -> float:
    """rows x context x fill / tokens of the average document; fill: share of a packed row that is not padding."""
    return stage.rows_per_batch * stage.context * fill / mean.tokens


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """The sizes of a model that the arithmetic needs.

    parameters: by part of DreamLLM.  layers, hidden, intermediate, key_value_share, vocabulary: of the language model;
    key_value_share: heads of keys and values by heads of queries.  embeddings: parameters of its token embeddings and
    head, which are one when tied.  clip, vae, unet: FLOPs of a forward pass for one picture (vae: encoding; unet: of
    the denoiser, also where it is a transformer).
    unet_saved, unet_kept: bytes of activations of a picture without and with gradient checkpointing.
    vae_peak: bytes that encoding a picture needs for a moment.  connector, connector_saved: FLOPs of a forward pass and
    bytes of activations of the condition projector, for one picture, where it is a connector
    """

    parameters: Mapping[str, int]
    layers: int
    hidden: int
    intermediate: int
    key_value_share: float
    vocabulary: int
    embeddings: int
    clip: float
    vae: float
    unet: float
    unet_saved: float
    unet_kept: float
    vae_peak: float
    patches: int
    queries: int
    connector: float = 0.0
    connector_saved: float = 0.0

    @property
    def denoiser(self) -> str:
        """The part that denoises: unet or transformer."""
        return "transformer" if "transformer" in self.parameters else "unet"

    @property
    def denoiser_label(self) -> str:
        """How the plan calls it."""
        return {"unet": "UNet"}.get(self.denoiser, self.denoiser)


def language_forward(size: Size, tokens: float, context: int) -> float:
    """FLOPs of the decoder for `tokens` in rows of `context`: 2 per parameter and token, 4 x context x hidden per token
    and layer for the scores and their use. The mask of packed documents does not save computation.
    """
    matrices = size.parameters["language_model"] - size.embeddings
    return tokens * (2 * matrices + 4 * context * size.hidden * size.layers)


def step_flops(size: Size, stage: Stage, machine: Machine, load: Load) -> dict[str, float]:
    """FLOPs of one optimiser step of `load`, by part.

    Language model: forward, the gradient of its inputs (always: projectors and queries are on their other side), the
    gradient of its weights when all of them are trained, and the forward pass of checkpointed layers once more.
    Head: the same at the targets alone. UNet: forward, the gradient of its inputs, that of its weights when they are
    trained, and the forward pass of checkpointed blocks once more, and once more where it is trained in parts of
    pictures_at_a_time, for each of a picture's draws. Connector: forward and both gradients. CLIP and VAE: forward; for
    the alignment loss CLIP also of drawn pictures.
    """
    whole = "language_model" in stage.trains and stage.lora is None
    trains_unet = size.denoiser in stage.trains
    every, every_unet = checkpointed(machine, trains_unet=trains_unet)
    again = math.ceil(size.layers / every) / size.layers if every else 0
    unet_again = (1 / every_unet if every_unet else 0) + (trains_unet and machine.pictures_at_a_time is not None)
    head = 2 * size.vocabulary * size.hidden * load.targets if stage.loss_weights.language else 0.0
    drawn = load.drawn if stage.loss_weights.diffusion else 0.0
    connector = {"connector": 3 * size.connector * drawn} if size.connector else {}
    return connector | {
        "language model": language_forward(size, load.tokens, stage.context) * (2 + whole + again),
        "head": head * (2 + ("language_model" in stage.trains)),
        "CLIP": size.clip * (load.read + (load.drawn if stage.loss_weights.alignment else 0.0)),
        "VAE": size.vae * drawn,
        size.denoiser_label: size.unet * drawn * stage.noise_draws * (2 + trains_unet + unet_again),
    }


def gpu_hours(flops: float, peak: float, utilisation: float) -> float:
    """FLOPs / (peak FLOP/s x utilisation) in hours of one GPU."""
    return flops / (peak * utilisation) / 3600


# ---- memory ----------------------------------------------------------------------------------------------------------


def lora_parameters(size: Size, rank: int) -> int:
    """Parameters of adapters of `rank` on all linear layers of a LLaMA but its head: rank x (in + out) of each."""
    h, i, kv = size.hidden, size.intermediate, int(size.key_value_share * size.hidden)
    per_layer = 2 * (h + h) + 2 * (h + kv) + 2 * (h + i) + (i + h)  # q and o; k and v; gate and up; down
    return rank * per_layer * size.layers


def trained_parameters(size: Size, stage: Stage) -> dict[str, int]:
    """Trained parameters by part; with adapters these, the embeddings and the head."""
    trained: dict[str, int] = {part: size.parameters[part] for part in stage.trains}
    if stage.lora:
        trained["language_model"] = size.embeddings + lora_parameters(size, stage.lora.rank)
    return trained


def layer_activations(size: Size) -> float:
    """Bytes per token that a decoder layer keeps for its backward pass under bf16, attention keeping no scores.

    Two norms: input and output in fp32, output once more in bf16, 20 h. Queries, keys and values before and after the
    rotation, 4 h (1 + 2 g), g = key_value_share. Attention's output, 2 h. Gate, up, activation and product, 8 i.
    """
    h, i = size.hidden, size.intermediate
    return 20 * h + 4 * h * (1 + 2 * size.key_value_share) + 2 * h + 8 * i


def gpu_memory(size: Size, stage: Stage, machine: Machine, load: Load) -> dict[str, float]:
    """Bytes on each GPU at the worst moment of a step of `load` (the whole batch), by what takes them.

    S: parameters of the language model and of what is new; E: of CLIP, VAE and UNet, whole on every GPU in fp32 (a
    trained UNet is of S); A: the trained ones; N: GPUs.
        sharding none             4 S weights, 4 A gradients, 8 A optimiser state (2 A with optimizer adamw_8bit)
        shard_grad_op             the same / N, and 2 S: weights in bf16, gathered from forward to backward; with
                                  several micro-batches 4 A gradients, which are exchanged after the last one
        full_shard                the same / N, and 2 S x 2 / layers: two layers gathered at a time
    bf16 copies of autocast: 2 A; without gradient checkpointing of all weights that gradients pass through, S and UNet.
    Activations: rows_at_a_time x context x layers x `layer_activations`, of a checkpointed layer 4 h, and one of these
    whole; those of the UNet, with all draws, or, where it needs more, of the VAE for as many pictures as are in these
    rows or pictures_at_a_time; those of a connector, of all pictures in these rows; logits: 10 V per target (bf16, fp32
    and their gradient).
    """
    processes = max(1, machine.gpus) * machine.nodes
    parameters = size.parameters
    encoders = sum(parameters[part] for part in {"vision_model", "vae", size.denoiser} - {*stage.trains})
    shared = sum(parameters.values()) - encoders
    trained = sum(trained_parameters(size, stage).values())
    adapters = lora_parameters(size, stage.lora.rank) if stage.lora else 0
    sharded = machine.sharding != "none" and processes > 1
    parts = processes if sharded else 1

    rows = stage.rows_per_batch / processes
    here = min(rows, machine.rows_at_a_time or rows)
    part = load * (here / stage.rows_per_batch)
    tokens = here * stage.context
    drawn = part.drawn if stage.loss_weights.diffusion else 0.0
    most = machine.pictures_at_a_time or drawn * stage.noise_draws
    every, every_unet = checkpointed(machine, trains_unet=size.denoiser in stage.trains)
    again = math.ceil(size.layers / every) if every else 0  # layers
    whole = size.layers - again + (again > 0)
    language = tokens * (FP32 * size.hidden * again + whole * layer_activations(size))
    unet = size.unet_saved - ((size.unet_saved - size.unet_kept) / every_unet if every_unet else 0)
    copies = 0.0
    if sharded:
        copies = BF16 * shared * (1 if machine.sharding == "shard_grad_op" else min(1, 2 / size.layers))
    elif every:
        copies = BF16 * trained
    else:
        is_frozen = stage.loss_weights.diffusion and size.denoiser not in stage.trains
        frozen_unet = parameters[size.denoiser] if is_frozen else 0
        copies = BF16 * (shared + adapters + frozen_unet)
    connector = {"activations of the connector": size.connector_saved * drawn} if size.connector_saved else {}
    return connector | {
        "weights": FP32 * (encoders + (shared + adapters) / parts),
        "gradients": FP32 * trained / (1 if machine.sharding == "shard_grad_op" and here < rows else parts),
        "optimiser state": (ADAM_8BIT if machine.optimizer == "adamw_8bit" else ADAM) * trained / parts,
        "bf16 copies": copies,
        "activations of the language model": language,
        f"activations of {size.denoiser_label} or VAE": max(
            unet * min(drawn * stage.noise_draws, most), size.vae_peak * min(drawn, most)
        ),
        "logits": 10 * size.vocabulary * part.targets if stage.loss_weights.language else 0.0,
        "reserve": RESERVED,
    }
