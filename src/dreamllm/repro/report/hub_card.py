"""The model card of an exported folder, README.md: how to use the model, data and licence, results with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dreamllm import __version__
from dreamllm.config.world import EMOJI_LICENCE, WORLD_SETS
from dreamllm.evaluate.files import read_json
from dreamllm.train.checkpoint import read_metadata

TEMPLATE = Path(__file__).parent / "templates" / "hub-card.md"


def card(checkpoints: Sequence[Path]) -> str:
    """The card of the model of these checkpoints, in loading order, with the results that were measured on them."""
    stages = [read_metadata(folder) for folder in checkpoints]
    data = sorted({name for about in stages for name in about.get("data", {})})
    licence = EMOJI_LICENCE if data and set(data) <= set(WORLD_SETS) else ""
    found = results(checkpoints)
    names = [str(one.get("stage") or Path(folder).name) for one, folder in zip(stages, checkpoints, strict=True)]
    name = names[-1]
    about = ModelCardData(
        language="en",
        license=licence.lower() or "other",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["dreamllm", "text-to-image", "interleaved"],
        datasets=data,
        model_name=f"DreamLLM {name}",
        eval_results=[
            EvalResult("image-text-to-text", benchmark, benchmark, metric, round(one["value"], 6), dataset_split=split)
            for benchmark, split, metric, one in found
        ]
        or None,
    )
    return str(
        ModelCard.from_template(
            about,
            template_str=TEMPLATE.read_text(encoding="utf-8"),
            stage=name,
            version=__version__,
            stages=[
                {"stage": stage, "data": list(one.get("data", {})), "lora": one.get("config", {}).get("lora")}
                for stage, one in zip(names, stages, strict=True)
            ],
            foundations=stages[-1].get("foundations", {}),
            licence=licence,
            results=found,
            interval=_interval,
        )
    )


def results(checkpoints: Sequence[Path]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(benchmark, split, metric, number) of the metrics files of the run that were measured on these very tensors.

    They lie in metrics/RUN/MODEL/ beside checkpoints/RUN/STAGE/, in the folder of results.
    """
    run = Path(checkpoints[-1]).absolute().parent
    tensors = {read_metadata(folder).get("tensors") for folder in checkpoints}
    files = sorted((run.parent.parent / "metrics" / run.name).glob("*/*.json"))
    return [
        (content["benchmark"], content["split"], metric, one)
        for content in map(read_json, files)
        if set(content["protocol"].get("checkpoints", {}).values()) == tensors
        for metric, one in content["metrics"].items()
        if one["value"] is not None
    ]


def _interval(one: dict[str, Any]) -> str:
    """The interval of a number, for the table."""
    low, high = one.get("low"), one.get("high")
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
