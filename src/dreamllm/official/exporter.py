"""Write a trained model in the format of the authors' released checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dreamllm.atomic import new_folder
from dreamllm.model.decoders import stable_diffusion
from dreamllm.model.processor import SPECIAL_TOKENS
from dreamllm.official import CLIP, SD, convert, files
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.importer import REPORT
from dreamllm.train.checkpoint import foundation_folders, load_model, options_of

PLUGIN_FILES = {f"{plugin}.bin" for plugin in convert.PLUGINS}


def export_official(
    foundations: Path, checkpoints: Sequence[Path], out: Path, *, clip: str = CLIP, sd: str = SD
) -> str:
    """Write foundations and checkpoints as one official checkpoint; returns a summary to print.

    Writes either everything or nothing.  clip, sd: hub names or folders that the official code loads the configurations
    of CLIP and Stable Diffusion from; ignored for an imported model, which keeps its own
    Raises OfficialProblem for a model that the official code does not support, CheckpointProblem for checkpoints that
    do not belong to the foundations.
    """
    reports = [files.read_json(folder / REPORT) for folder in checkpoints if (folder / REPORT).is_file()]
    report = reports[0] if reports else None
    model, processor = load_model(foundations, checkpoints)
    if model.decoder is not stable_diffusion or model.config.connector_layers:
        raise OfficialProblem(
            "the official code draws with Stable Diffusion 1 or 2 and a linear condition projector; this model has "
            f"{type(model.denoiser).__name__} and {type(model.condition_projector).__name__}"
        )
    tokens = ("<s>", "</s>", *SPECIAL_TOKENS)
    ids = dict(zip(tokens, processor.tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))
    rows, size = model.get_input_embeddings().num_embeddings, len(processor.tokenizer)
    if report is None and rows != size:
        raise OfficialProblem(
            f"the model has {rows} embeddings, but the tokenizer {size} tokens; the official code would resize them"
        )
    base = report["config"] if report else None
    config = convert.official_config(model.config, ids, base, clip, sd)
    tensors = convert.split(model.state_dict(), model.config.text_config)
    not_cast = 0
    if report:
        not_cast = sum(_cast_to_imported_precision(file, found, report["keys"]) for file, found in tensors.items())
    with new_folder(out) as folder:
        files.write(folder, config, tensors, foundations / foundation_folders(options_of(checkpoints))[0])
    lines = [f"{file}: {len(found)} tensors" for file, found in tensors.items()]
    if not_cast:
        lines.append(
            f"{not_cast} tensors stay in float32, because they were trained and the imported precision would round them"
        )
    return "\n".join(lines)


def _cast_to_imported_precision(file: str, tensors: dict[str, torch.Tensor], keys: Sequence[Mapping[str, Any]]) -> int:
    """Cast the tensors of a file in place to the precision that they were imported in, unless that would round them.

    Buffers are always cast, as they were in the imported files. Returns the number of tensors that were not cast.
    """
    is_plugin = file != "model"
    imported = {
        key["name"]: key for key in keys if (key["file"] == file if is_plugin else key["file"] not in PLUGIN_FILES)
    }
    not_cast = 0
    for name, tensor in tensors.items():
        if name in imported:
            cast = tensor.to(getattr(torch, imported[name]["dtype"]))
            if imported[name]["use"] == "recomputed" or torch.equal(cast.to(tensor.dtype), tensor):
                tensors[name] = cast
            else:
                not_cast += 1
    return not_cast
