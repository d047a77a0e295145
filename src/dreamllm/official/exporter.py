"""Writes a trained model in the layout of the authors' released checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dreamllm.atomic import new_folder
from dreamllm.model.processor import SPECIAL_TOKENS
from dreamllm.official import CLIP, SD, convert, files
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.importer import REPORT
from dreamllm.train.checkpoint import load_model

PLUGIN_FILES = {f"{plugin}.bin" for plugin in convert.PLUGINS}


def export_official(
    foundations: Path, checkpoints: Sequence[Path], out: Path, *, clip: str = CLIP, sd: str = SD
) -> str:
    """Write foundations and checkpoints as one official checkpoint, whole or not at all; returns a summary in words.

    clip, sd: what the official code shall load CLIP's and Stable Diffusion's configurations from, if the model was not
    imported: a name of the Hugging Face hub or a folder
    Raises OfficialProblem for a model that the official code cannot hold, CheckpointProblem where parts do not fit.
    """
    reports = [files.read_json(folder / REPORT) for folder in checkpoints if (folder / REPORT).is_file()]
    report = reports[0] if reports else None
    model, processor = load_model(foundations, checkpoints)
    tokens = ("<s>", "</s>", *SPECIAL_TOKENS)
    ids = dict(zip(tokens, processor.tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))
    rows, size = model.get_input_embeddings().num_embeddings, len(processor.tokenizer)
    if report is None and rows != size:
        raise OfficialProblem(f"the model has {rows} rows for {size} tokens; the official code would cut or add rows")
    base = report["config"] if report else None
    config = convert.official_config(model.config, ids, base, clip, sd)
    tensors = convert.split(model.state_dict(), model.config.text_config)
    left = sum(_to_old_precision(file, of_file, report["keys"]) for file, of_file in tensors.items()) if report else 0
    with new_folder(out) as folder:
        files.write(folder, config, tensors, foundations / "llm")
    lines = [f"{file}: {len(of_file)} tensors" for file, of_file in tensors.items()]
    if left:
        lines.append(f"{left} tensors stay in float32: they were trained and would be rounded in their old precision")
    return "\n".join(lines)


def _to_old_precision(file: str, tensors: dict[str, torch.Tensor], keys: Sequence[Mapping[str, Any]]) -> int:
    """Turn tensors of a file back to the precision that they were imported in, unless that would round them.

    Buffers are rounded, as they were then. Returns how many tensors were left.
    """
    is_plugin = file != "model"
    old = {key["name"]: key for key in keys if (key["file"] == file if is_plugin else key["file"] not in PLUGIN_FILES)}
    left = 0
    for name, tensor in tensors.items():
        if name in old:
            cast = tensor.to(getattr(torch, old[name]["dtype"]))
            if old[name]["use"] == "recomputed" or torch.equal(cast.to(tensor.dtype), tensor):
                tensors[name] = cast
            else:
                left += 1
    return left
