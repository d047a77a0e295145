"""A model of the paper's size with random weights on one GPU: training steps of stage II, and sampling of pictures.

    python benchmarks/gpu.py [--rows 8] [--documents 1 4] [--compile yes] [--steps 3] [--pictures 8]

Prints milliseconds, tokens per second, model FLOP utilisation (MFU) and peak memory of the step, for rows of one and of
several documents, with one way to save time or memory after the other; the losses must agree. Then the time of the
frozen networks, which `precompute` spends once, and pictures per second (512 px, 25 DDIM steps with guidance) by this
repository and by diffusers' StableDiffusionPipeline on the same networks. About ten minutes on an H200.
A step needs about 120 GB of GPU memory: weights, gradients and AdamW's moments are fp32, the computation is bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import miniature
import speed
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig
from unet_gradient import recomputation

from dreamllm.config.machine import Machine
from dreamllm.config.stages import Stage
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import lay_out
from dreamllm.data.packing import Batch
from dreamllm.model import varlen
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.sampling import PictureSampling, draw_from_states
from dreamllm.train import adamw, distributed

Model = DreamLLMForConditionalGeneration
CONTEXT = 2048
PICTURES = 4  # of a row
TOLERANCE = 0.03  # relative, of losses and norms of gradients in bfloat16
STAGE = Stage(
    trains=["language_model"], mode="joint", mixture={"pages": 1}, steps=1, rows_per_batch=1, context=CONTEXT,
    learning_rate=1e-30,
)  # fmt: skip
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16 FLOP/s, from NVIDIA's data sheets


def build(device: str = "cuda") -> Model:
    """A model with the sizes of Vicuna-7B, CLIP ViT-L/14 and Stable Diffusion 2.1, in fp32."""
    names = ("im_start", "im_end", "im_patch", "dream_start", "dream_end")
    config = DreamLLMConfig(
        text_config=LlamaConfig(vocab_size=32008, max_position_embeddings=CONTEXT),
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        ),
        vae_config={
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 4,
        },
        unet_config={
            "sample_size": 64,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        scheduler_config={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        num_dream_queries=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=32000,
        **{f"{name}_token_id": 32001 + index for index, name in enumerate(names)},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Model(config)
    model.config.vae_config, model.config.unet_config = dict(model.vae.config), dict(model.unet.config)
    return model.train()


def packed_batch(model: Model, rows: int, documents: int) -> Batch:
    """Rows of as many equal documents with four pictures in all, all drawn and read."""
    words, context = miniature.vocabulary(model), model.config.text_config.max_position_embeddings
    pictures, length = PICTURES // documents, context // documents
    taken = pictures * (words.num_queries + words.num_patches + 4) + 2
    text, picture = Text(str((length - taken) // pictures)), Picture(Image.new("RGB", (1, 1)))
    document = Document("page", "interleaved", (text, picture) * pictures)
    return miniature.batch(model, [lay_out(document, words, "joint", length) * documents for _ in range(rows)])


@dataclass
class Setup:
    """What a variant changes beside the model."""

    optimizer: torch.optim.Optimizer
    precomputed: bool = False


def variants(model: Model, accelerator: Accelerator, compiled: bool) -> Iterator[tuple[str, Setup]]:
    """Change the model step by step; yields the name of each change, after it, and what else to use."""
    groups = [{"params": speed.trainable_parameters(model)}]
    machine = Machine(gpus=1, gradient_checkpointing=True, pictures_at_a_time=16)
    distributed.prepare_model(model, machine, accelerator)
    setup = Setup(adamw.build(groups, STAGE, machine))
    model.unet.enable_gradient_checkpointing()
    with recomputation():
        yield "all checkpointed", setup
    model.unet.disable_gradient_checkpointing()
    yield "+ gradient of the diffusion loss in the forward pass", setup
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    attention = varlen.implementation(model.device, dtype)
    model.language_model.set_attn_implementation(attention)
    yield f"+ attention by lengths ({attention})", setup
    if compiled:
        distributed.compile_layers(model)
        yield "+ compiled", setup
    setup.precomputed = True
    yield "+ precompute", setup
    for every in (4, None):
        model.language_model.activation_checkpointing_disable()
        distributed.checkpoint_activations(model, every, None)
        yield f"+ {f'every {every}th layer' if every else 'no layer'} checkpointed", setup
    if find_spec("bitsandbytes"):
        setup.optimizer = None  # free its memory first
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        setup.optimizer = adamw.build(groups, STAGE, machine.model_copy(update={"optimizer": "adamw_8bit"}))
        yield "+ AdamW in 8 bits", setup


def step(model: Model, setup: Setup, batch: Batch, accelerator: Accelerator, steps: int) -> tuple[torch.Tensor, str]:
    """Loss and norm of the gradient in the first step, (2,); and time, speed and memory of a step, as text."""
    batch = batch.to(model.device)
    with accelerator.autocast():
        used = speed.precomputed(model, batch) if setup.precomputed else batch
    noise = model.draw_noise(len(batch.draw_slots), torch.Generator().manual_seed(0))
    parameters = speed.trainable_parameters(model)
    results: list[torch.Tensor] = []

    def run() -> None:
        with accelerator.autocast():
            loss = model(**used.inputs(), noise=noise).loss
        loss.backward()
        results.append(torch.stack([loss.detach(), distributed.clip_gradients(parameters, 1.0)]))
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)

    if on_gpu := torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(run, steps)
    tokens, operations = batch.input_ids.numel(), model_flops(model, batch)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = next((value for gpu, value in PEAKS.items() if gpu in name), None)
    utilisation = "unknown" if peak is None else f"{100 * operations / seconds / peak:.1f} %"
    memory = f", peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
    speeds = f"{1000 * seconds:.0f} ms, {tokens / seconds:,.0f} tokens/s, {operations / 1e12:.3g} TFLOP"
    return results[0].cpu(), f"{speeds}, MFU {utilisation}{memory}"


def training_steps(
    model: Model, accelerator: Accelerator, rows: Sequence[int], documents: Sequence[int], compiled: bool, steps: int
) -> Iterator[str]:
    """Lines with the times of all variants. The learning rate is next to 0, so that all have the same weights.

    Raises AssertionError where loss or gradient of a variant are not those of the first.
    """
    first: dict[tuple[int, int], torch.Tensor] = {}
    for name, setup in variants(model, accelerator, compiled):
        for count, parts in product(rows, documents):
            try:
                found, line = step(model, setup, packed_batch(model, count, parts), accelerator, steps)
                wanted = first.setdefault((count, parts), found)
                same = torch.allclose(found, wanted, rtol=TOLERANCE)
                assert same, f"{name}: loss and norm of the gradient are {found.tolist()}, not {wanted.tolist()}"
            except torch.OutOfMemoryError as error:
                setup.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                line = f"do not fit ({str(error).split('.')[0]})"
            yield f"{name}: {count} rows of {parts} document(s): {line}"


def frozen_networks(model: Model, pictures: int) -> str:
    """Time of the frozen networks: CLIP and VAE forward; UNet forward, recomputed, and backward to its conditions."""
    config = model.config
    unet, side = config.unet_config, config.vision_config.image_size
    with torch.device(model.device):
        read, drawn = torch.randn(pictures, 3, side, side), torch.randn(pictures, 3, config.draw_size, config.draw_size)
        latents = torch.randn(pictures, unet["in_channels"], unet["sample_size"], unet["sample_size"])
        conditions = torch.randn(pictures, config.num_dream_queries, unet["cross_attention_dim"], requires_grad=True)
        times = torch.zeros(pictures, dtype=torch.long)
    seconds = {
        "CLIP": timed(lambda: model.patch_features(read), 3),
        "VAE": timed(lambda: model.latent_moments(drawn), 3),
        "UNet": timed(lambda: model.denoise(latents, times, conditions).square().mean().backward(), 3),
    }
    line = ", ".join(f"{part} {1000 * value:.0f} ms" for part, value in seconds.items())
    return f"{pictures} pictures: {line}"


@torch.no_grad()
def model_flops(model: Model, batch: Batch) -> float:
    """FLOPs of a step, for the MFU; what gradient checkpointing recomputes does not count.

    Language model: 6 for each token and each parameter outside the embeddings, and causal attention. UNet: forward, and
    backward to its input only. CLIP and VAE: forward.
    """
    text = model.config.text_config
    rows, length = batch.input_ids.shape
    matrices = sum(p.numel() for p in model.language_model.parameters()) - text.vocab_size * text.hidden_size
    operations = 6.0 * matrices * rows * length
    operations += miniature.attention_flops(model, batch)
    unet, count = model.config.unet_config, len(batch.draw_slots)
    with torch.autocast(model.device.type, torch.bfloat16), torch.device(model.device):
        conditions = torch.zeros(count, model.config.num_dream_queries, unet["cross_attention_dim"])
        latents = torch.zeros(count, unet["in_channels"], unet["sample_size"], unet["sample_size"])
        with FlopCounterMode(display=False) as counter:
            model.denoise(latents, torch.zeros(count, dtype=torch.long), conditions)
        operations += 2 * counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            model.patch_features(batch.read_pixels)
            model.latent_moments(batch.draw_pixels)
    return operations + counter.get_total_flops()


def sampling(model: Model, count: int) -> str:
    """Pictures per second by `draw_from_states` and by diffusers' pipeline, from the same conditions, in bfloat16."""
    model = model.eval().to(torch.bfloat16)
    shape = (count, model.config.num_dream_queries, model.config.text_config.hidden_size)
    states = torch.randn(shape, device=model.device, dtype=torch.bfloat16)
    sampling = PictureSampling("DDIMScheduler", steps=25, guidance=2.0)
    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(model.config.scheduler_config, timestep_spacing="trailing"),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        conditions = model.condition_projector(states)
    ours = timed(lambda: draw_from_states(model, states, states[:1], list(range(count)), sampling), 3)
    plain = timed(
        lambda: pipeline(
            prompt_embeds=conditions,
            negative_prompt_embeds=conditions[:1].expand_as(conditions),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
        ),
        3,
    )
    return f"pictures per second: ours {count / ours:.2f}, plain diffusers {count / plain:.2f}"


def timed(run: Callable[[], object], turns: int) -> float:
    """Seconds per call of `run`, after two warm-up calls."""
    for _ in range(2):
        run()
    synchronise()
    begin = time.perf_counter()
    for _ in range(turns):
        run()
    synchronise()
    return (time.perf_counter() - begin) / turns


def synchronise() -> None:
    """Wait until the GPU is idle, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure the training step, then sampling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[8], help="rows of 2048 tokens per step, one after another"
    )
    parser.add_argument("--documents", type=int, nargs="+", choices=[1, 2, 4], default=[1, 4], help="documents per row")
    parser.add_argument("--compile", choices=["no", "yes"], default="yes", help="layers and blocks as machine.compile")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8, help="pictures at a time; 0: none")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a GPU; benchmarks/speed.py does not")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    accelerator = Accelerator(mixed_precision="bf16")
    model = build()
    compiled = arguments.compile == "yes"
    for line in training_steps(model, accelerator, arguments.rows, arguments.documents, compiled, arguments.steps):
        print(line, flush=True)
    torch.cuda.empty_cache()
    with accelerator.autocast():
        print(frozen_networks(model, 16), flush=True)
    if arguments.pictures:
        print(sampling(model, arguments.pictures), flush=True)


if __name__ == "__main__":
    main()
