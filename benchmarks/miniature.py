"""Models with random weights, and documents, of the sizes at which the authors' code was timed.

    tiny    0.75 M parameters: every part as in the model whose times with the authors' code are recorded
    small   about 10 M: language model 256 x 6 layers, CLIP at 56 px, 16 queries, UNet (64, 128); sizes that are not
            recorded are chosen so that each part takes about the recorded share of the time

A batch holds 8 documents of 256 tokens, with two pictures each. Contents are random: time depends on shapes alone.
"""

from __future__ import annotations

import dreamllm  # noqa: F401  mends torchvision beside CPU torch, so before transformers and diffusers

# isort: split
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig

from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import Mode, TokenSequence, Vocabulary, lay_out
from dreamllm.data.packing import Batch, Row, collate
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration

CONTEXT = 256
NEW_TOKENS = ("[PAD]", "im_start", "dream_end", "dream_start", "im_patch", "im_end", "image", "dream")
SIZES = {
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4},
        "vision": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "image_size": 28},
        "vae": (16, 32, 32),
        "unet": {"block_out_channels": (16, 32), "cross_attention_dim": 40, "attention_head_dim": (2, 4)},
        "latent_side": 8,
        "queries": 8,
    },
    "small": {
        "text": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8},
        "vision": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "image_size": 56},
        "vae": (32, 64, 64),
        "unet": {"block_out_channels": (64, 128), "cross_attention_dim": 128, "attention_head_dim": (4, 8)},
        "latent_side": 8,
        "queries": 16,
    },
}


def build(size: str) -> DreamLLMForConditionalGeneration:
    """A model with random weights in training mode. CLIP, VAE and UNet are frozen, as in the paper's later stages."""
    parts = SIZES[size]
    ids = {name: 512 + index for index, name in enumerate(NEW_TOKENS)}
    torch.manual_seed(0)
    config = DreamLLMConfig(
        text_config=LlamaConfig(vocab_size=520, max_position_embeddings=512, rms_norm_eps=1e-6, **parts["text"]),
        vision_config=CLIPVisionConfig(patch_size=7, num_hidden_layers=4, projection_dim=32, **parts["vision"]),
        vae_config={
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "block_out_channels": parts["vae"],
            "norm_num_groups": 8,
            "sample_size": 4 * parts["latent_side"],
        },
        unet_config={
            "sample_size": parts["latent_side"],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "use_linear_projection": True,
            **parts["unet"],
        },
        scheduler_config={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        num_dream_queries=parts["queries"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=ids["[PAD]"],
        **{f"{name}_token_id": id for name, id in ids.items() if "_" in name},
    )
    model = DreamLLMForConditionalGeneration(config)
    model.config.vae_config = dict(model.vae.config)  # with the defaults that were left out above
    model.config.unet_config = dict(model.unet.config)
    return model.train()


def vocabulary(model: DreamLLMForConditionalGeneration) -> Vocabulary:
    """A vocabulary in which the text "7" stands for seven tokens."""
    config = model.config
    names = ("im_patch", "im_start", "im_end", "dream_start", "dream_end")
    return Vocabulary(
        encode=lambda text: [3 + index * 37 % 500 for index in range(int(text))],
        bos=config.bos_token_id,
        eos=config.eos_token_id,
        pad=config.pad_token_id,
        num_patches=config.num_patches,
        num_queries=config.num_dream_queries,
        **{name: getattr(config, f"{name}_token_id") for name in names},
    )


def sequences(model: DreamLLMForConditionalGeneration, workload: str) -> list[TokenSequence]:
    """The eight documents of a workload, laid out.

    joint     256 tokens with two pictures, drawn and read
    creation  256 tokens with two pictures, drawn only, as in the authors' stage I (whose documents have one picture)
    text      256 tokens without pictures
    mixed     as a batch of I-GPT: four documents of "joint", two pairs to read and two pairs to draw, of 20 tokens
    """
    words = vocabulary(model)
    picture = Picture(Image.new("RGB", (1, 1)))
    if workload == "mixed":
        pairs = [Document(f"pair {index}", "pair", (Text("20"), picture)) for index in range(4)]
        modes: list[Mode] = ["comprehension", "creation"]
        laid = [lay_out(pair, words, modes[index % 2], CONTEXT)[0] for index, pair in enumerate(pairs)]
        return sequences(model, "joint")[:4] + laid
    if workload == "text":
        parts, mode, taken = [Text("0")], "joint", 0
    else:
        parts, mode = [Text("0"), picture, Text("0"), picture, Text("0")], workload
        blocks = words.num_queries + 2 + (words.num_patches + 2 if mode == "joint" else 0)
        taken = 2 * blocks
    left = CONTEXT - 2 - taken  # without <s> and </s>
    texts = [index for index, part in enumerate(parts) if isinstance(part, Text)]
    for number, index in enumerate(texts):
        parts[index] = Text(str(left // len(texts) + (number < left % len(texts))))
    kind = "text" if workload == "text" else "interleaved"
    return [lay_out(Document(f"{kind} {index}", kind, tuple(parts)), words, mode, CONTEXT)[0] for index in range(8)]


def batch(model: DreamLLMForConditionalGeneration, rows: list[Row]) -> Batch:
    """Rows as a batch with random pictures; the n-th picture is the same in every batch."""

    def pixels(side: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        return lambda pictures: torch.randn((len(pictures), 3, side, side), generator=generator)

    draw = pixels(model.config.draw_size, 2)
    return collate(rows, vocabulary(model), pixels(model.config.vision_config.image_size, 1), draw)


def attention_flops(model: DreamLLMForConditionalGeneration, batch: Batch) -> float:
    """FLOPs of the language model's causal attention in a step, forward and backward.

    torch's FlopCounterMode does not count them on a CPU.
    """
    text = model.config.text_config
    squares = batch.cu_seq_lens.diff().double().square().sum().item()
    forward = 2 * squares * text.hidden_size  # of a layer: 4 n^2 d for a document, of which half is masked
    return 3.0 * text.num_hidden_layers * forward
