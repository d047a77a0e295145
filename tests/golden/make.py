"""Makes the golden file: what this repository's model computed when it was last checked against the official code.

    python tests/golden/make.py

Run it only where `test_official_equality.py` runs and passes, and only when the numbers are meant to change. Written
beside this script: config.json, weights.safetensors (a tiny random model) and cases.safetensors (batches and results).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from dreamllm.data.packing import Batch, Row, pack
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.packed import gather_slots
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.model.sampling import make_scheduler, sample_latents

FOLDER = Path(__file__).parent
CONTEXT = 160

DOCUMENTS = {
    "joint": [(tiny.story(1), "joint"), (tiny.story(2), "joint"), (tiny.conversation(3), "joint")],
    "comprehension": [(tiny.pair(4), "comprehension"), (tiny.story(5), "comprehension"), (tiny.text(6), "joint")],
    "creation": [(tiny.pair(7), "creation"), (tiny.pair(8, "A ship."), "creation")],
}
CASES = {  # name -> batch, changes of the configuration; gradients are kept for the first
    "epsilon": ("joint", {}),
    "reading": ("comprehension", {}),
    "drawing": ("creation", {}),
    "velocity": ("creation", {"prediction_type": "v_prediction"}),
    "min snr": ("creation", {"snr_gamma": 5.0}),
    "velocity and min snr": ("creation", {"prediction_type": "v_prediction", "snr_gamma": 5.0}),
    "noisy": ("creation", {"noise_offset": 0.1, "input_perturbation": 0.1}),
    "dropout": ("joint", {"condition_dropout": 0.5}),
}
SCHEDULERS = ("DPMSolverMultistepScheduler", "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler")


def rows(processor: DreamLLMProcessor, name: str) -> list[Row]:
    """The documents of a batch, laid out and packed."""
    laid = [sequence for document, mode in DOCUMENTS[name] for sequence in processor.lay_out(document, mode, CONTEXT)]
    return pack(laid, CONTEXT)


def load_model(weights: dict[str, torch.Tensor], **changes) -> DreamLLMForConditionalGeneration:
    """The golden model with a changed configuration, in training mode."""
    config = DreamLLMConfig.from_dict(json.loads((FOLDER / "config.json").read_text()))
    if prediction_type := changes.pop("prediction_type", None):
        config.scheduler_config["prediction_type"] = prediction_type
    for name, value in changes.items():
        setattr(config, name, value)
    model = DreamLLMForConditionalGeneration(config)
    model.load_state_dict(weights)
    return model.train()


def results(weights: dict[str, torch.Tensor], batches: dict[str, Batch]) -> dict[str, torch.Tensor]:
    """Every number that the golden file holds besides weights and batches."""
    found = {}
    for number, (case, (batch, changes)) in enumerate(CASES.items()):
        model = load_model(weights, **changes)
        output = model(**batches[batch].inputs(), generator=torch.Generator().manual_seed(number))
        found[f"{case}.language_loss"] = output.language_loss
        found[f"{case}.diffusion_loss"] = output.diffusion_loss
        if not changes:
            states = gather_slots(output.last_hidden_state, batches[batch].draw_slots, model.config.num_dream_queries)
            found[f"{case}.states"] = states
            found[f"{case}.read"] = model.read(batches[batch].read_pixels)
        if number == 0:
            output.loss.backward()
            trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            found |= {f"{case}.gradient.{name}": weight.grad for name, weight in trained.items()}
    # Velocity: to recover a picture from predicted noise is to divide by almost nothing, which magnifies rounding.
    model = load_model(weights, prediction_type="v_prediction").eval()
    for name in SCHEDULERS:
        scheduler = make_scheduler(name, model.config.scheduler_config)
        scheduler.set_timesteps(4)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        noise = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
        states = found["drawing.states"]
        latents = sample_latents(model, states, model.null_states(), noise, scheduler, 2.0, generators=generators)
        found[f"sampling.{name}"] = latents
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def main() -> None:
    model, processor = tiny.build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # no weight may be one or zero, or a forgotten norm or bias would not show
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else 0.1 * parameter.std()
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    (FOLDER / "config.json").write_text(model.config.to_json_string())
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, FOLDER / "weights.safetensors")
    batches = {name: processor.collate(rows(processor, name)) for name in DOCUMENTS}
    cases = results(weights, batches)
    for name, batch in batches.items():
        inputs = {key: value for key, value in batch.inputs().items() if value is not None}
        cases |= {f"batch.{name}.{key}": value.contiguous() for key, value in inputs.items()}
    save_file(cases, FOLDER / "cases.safetensors")


if __name__ == "__main__":
    main()
