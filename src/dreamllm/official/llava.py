"""Import the visual projector that LLaVA released (arXiv 2310.03744), as a checkpoint of ours with this part alone."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from dreamllm import provenance
from dreamllm.config.experiment import Experiment, Model
from dreamllm.digests import sha256_of_file
from dreamllm.model.eyes import Projector, make_projector
from dreamllm.model.weights import load_part
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.files import read_file
from dreamllm.seeds import seed_of
from dreamllm.train import checkpoint

PREFIX = "mm_projector."
STAGE = "llava_projector"


def import_projector(file: Path, foundations: Path, out: Path, experiment: Experiment | None = None) -> str:
    """Write the projector in `file` as the checkpoint `out`, which fits `foundations`; returns a summary to print.

    file: mm_projector.bin or .safetensors, with 0.weight, 0.bias, 2.weight, 2.bias (LLaVA-1.5) or weight and bias
    (LLaVA), after any prefix that ends in mm_projector.  foundations: folder with the llm/ and clip/ that the projector
    was trained between, and with sd/.  experiment: the experiment that will use it, if any
    Raises OfficialProblem for other tensors, and for sizes or a configuration that do not fit.
    """
    tensors = {name.rpartition(PREFIX)[2]: tensor.float() for name, tensor in read_file(file).items()}
    kind: Projector = "linear" if "weight" in tensors else "mlp"
    options = (experiment.model if experiment else Model(visual_projector_type=kind)).model_dump(mode="json")
    if options["visual_projector_type"] != kind:
        raise OfficialProblem(f"{file}: holds a projector of type {kind}; set model.visual_projector_type to {kind}")
    llm, clip = (load_part(AutoConfig, foundations / name) for name in ("llm", "clip"))
    widths = getattr(clip, "vision_config", clip).hidden_size, llm.hidden_size
    wanted = {name: tuple(tensor.shape) for name, tensor in make_projector(kind, *widths).state_dict().items()}
    if (found := {name: tuple(tensor.shape) for name, tensor in tensors.items()}) != wanted:
        raise OfficialProblem(f"{file}: has {found}, but a projector between clip/ and llm/ has {wanted}")
    metadata = {
        "stage": STAGE,
        "model": options | {"seed": seed_of(experiment.seed if experiment else 0, "model")},
        "foundations": checkpoint.foundation_digests(foundations),
        "source": {file.name: sha256_of_file(file)},
        "versions": provenance.versions(),
        **provenance.commit(),
    }
    trained = {f"visual_projector.{name}": tensor for name, tensor in tensors.items()}
    checkpoint.save_trained(out, trained, metadata, "step,language_loss,diffusion_loss\n")
    return f"visual projector ({kind}): {len(tensors)} tensors, from {widths[0]} to {widths[1]}"
