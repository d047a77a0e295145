"""A model of the paper's size with random weights on one GPU: a training step of stage II, and sampling of pictures.

    python benchmarks/gpu.py [--rows 4 8 16] [--compile no yes] [--steps 3] [--pictures 8]

Prints milliseconds, tokens per second, model FLOP utilisation (MFU) and peak memory of the step; then pictures per
second (512 px, 25 DDIM steps with guidance) by this repository and by diffusers' StableDiffusionPipeline on the same
networks.
A step needs about 120 GB of GPU memory: weights, gradients and AdamW's moments are fp32, the computation is bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
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

from dreamllm.config.machine import Machine
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import lay_out
from dreamllm.data.packing import Batch
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.sampling import PictureSampling, draw_from_states
from dreamllm.train import distributed

Model = DreamLLMForConditionalGeneration
CONTEXT = 2048
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


def step(model: Model, optimizer: torch.optim.Optimizer, accelerator: Accelerator, rows: int, steps: int) -> str:
    """Time, speed and memory of an I-GPT step on rows of 2048 tokens with four pictures each, all drawn and read."""
    picture = Picture(Image.new("RGB", (1, 1)))
    words = miniature.vocabulary(model)
    taken = 4 * (words.num_queries + words.num_patches + 4) + 2
    parts = [part for _ in range(4) for part in (Text(str((CONTEXT - taken) // 4)), picture)]
    document = Document("page", "interleaved", tuple(parts))
    batch = miniature.batch(model, [lay_out(document, words, "joint", CONTEXT) for _ in range(rows)]).to("cuda")
    noise = model.draw_noise(len(batch.draw_slots))
    parameters = speed.trainable_parameters(model)

    def run() -> None:
        with accelerator.autocast():
            loss = model(**batch.inputs(), noise=noise).loss
        loss.backward()
        distributed.clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    seconds = timed(run, steps)
    tokens, operations = batch.input_ids.numel(), model_flops(model, batch)
    peak = next((value for name, value in PEAKS.items() if name in torch.cuda.get_device_name()), None)
    utilisation = "unknown GPU" if peak is None else f"{100 * operations / seconds / peak:.1f} %"
    return (
        f"{rows} rows: {1000 * seconds:.0f} ms, {tokens / seconds:,.0f} tokens/s, {operations / 1e12:.0f} TFLOP, "
        f"MFU {utilisation}, peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )


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
        "--rows", type=int, nargs="+", default=[4], help="rows of 2048 tokens per step, one after another"
    )
    parser.add_argument("--compile", nargs="+", choices=["no", "yes"], default=["no"], help="layers as machine.compile")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8, help="pictures at a time; 0: none")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a GPU; benchmarks/speed.py does not")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    accelerator = Accelerator(mixed_precision="bf16")
    model = build()
    distributed.prepare_model(model, Machine(gpus=1, gradient_checkpointing=True, pictures_at_a_time=16), accelerator)
    optimizer = torch.optim.AdamW(speed.trainable_parameters(model), lr=1e-5, fused=True)
    for compiled in arguments.compile:
        if compiled == "yes":
            distributed.compile_layers(model)
        for rows in arguments.rows:
            try:
                line = step(model, optimizer, accelerator, rows, arguments.steps)
            except torch.OutOfMemoryError as error:
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                line = f"{rows} rows: do not fit ({str(error).split('.')[0]})"
            print(f"compiled: {compiled}, {line}", flush=True)
    memory_formats = (torch.contiguous_format, torch.channels_last) * 2  # each twice, to show the noise
    for memory_format in memory_formats:
        speed.set_memory_format(model, memory_format)
        with accelerator.autocast():
            print(f"{memory_format}: {frozen_networks(model, 16)}", flush=True)
    del optimizer
    torch.cuda.empty_cache()
    if arguments.pictures:
        for memory_format in memory_formats:
            speed.set_memory_format(model, memory_format)
            print(f"{memory_format}: {sampling(model, arguments.pictures)}", flush=True)


if __name__ == "__main__":
    main()
