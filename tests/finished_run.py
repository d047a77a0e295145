"""Writes the files of a small finished run by hand, with hostile text wherever a model may have written it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.config.world import World
from dreamllm.digests import digest, sha256_of_file
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import predictions, tasks

ROOT = Path(__file__).parent.parent
HOSTILE = '</p><script>alert("x")</script><img src=x onerror=alert(1)>" onmouseover="alert(2)'
NAME = "smoke"
TIMING = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
SET, WHEN = "data/emoji_smoke/train", 1_700_000_000.0


def write(root: Path) -> Path:
    """Write the run into `root` and return it: checkpoints, predictions and metrics of two models, tables, records."""
    for name in ("paper", "config", "workflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CITATION.cff", "requirements.lock", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    _write_text(root / SET / "pairs-00000.tar", "shard")
    for part in ("llm", "clip", "sd", "judge", "judge2"):
        _write_text(root / "data/foundations_smoke" / part / "model.safetensors", part)
    folder = root / "data/emoji_smoke/benchmarks"
    folder.mkdir(parents=True)
    world = World(picture_side=48, benchmarks={"pictures": 6, "draw": 6, "stories": 3, "language": 2, "in_context": 4})
    write_benchmarks(world, "test", folder)
    for stage in ("align_comprehension", "sft"):
        _write_checkpoint(root, stage)
    red = Image.new("RGB", (48, 48), "red")
    items = tasks.load("draw", folder, "test")
    drawn = [{"id": item.id, "prompt": HOSTILE, "image": "0.png"} for item in items]
    for model in ("sd", "sft"):
        _write_predictions(root, model, "draw", drawn, {"0.png": red})
        _write_metrics(root, model, "draw", fid=0.4, all=0.25)
    told = [{"text": HOSTILE}, {"image": "0.png"}, {"text": "the end"}]
    items = tasks.load("stories", folder, "test")
    stories = [{"id": item.id, "prompt": HOSTILE, "parts": told, "stopped": HOSTILE} for item in items]
    _write_predictions(root, "sft", "stories", stories, {"0.png": red})
    _write_metrics(root, "sft", "stories", dream_where_due=1.0)
    _write_predictions(root, "sft", "vqa", [{"id": "1", "prompt": "?", "output": HOSTILE}])
    _write_metrics(root, "sft", "vqa", accuracy=0.5)
    for name, what in (("tables/table1.csv", "id\n"), ("tables/claims.csv", "claim\n")):
        _write_text(root / "results" / name, what)
    (root / "results/figures").mkdir()
    red.save(root / "results/figures/curves.png")
    for job in ("train_sft", "predict_sft_draw", "tables"):
        _write_text(root / f"timings/{NAME}/{job}.tsv", f"{TIMING}3600.0\t1:00:00\t500.0\t0\t0\t0\t0\t0\t50\t1800.0\n")
    _write_text(root / f"timings/{NAME}/score_sft_draw.tsv", f"{TIMING}0.4\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\t0\tNA\n")
    checkpoint, pictures = f"results/checkpoints/{NAME}/sft", f"results/predictions/{NAME}/sft/draw.tar"
    write_record(root, checkpoint, "train_sft", [f"{root}/{SET}"], 0)
    write_record(root, pictures, "predict_pictures", [checkpoint], 10, log="predict_sft_draw")
    write_record(root, f"results/metrics/{NAME}/sft/draw.json", "score", [pictures], 20, log="score_sft_draw")
    write_record(root, "results/tables", "tables", [f"results/metrics/{NAME}/sft/draw.json"], 30)
    write_record(root, "results/checkpoints/other/sft", "train_sft", ["data/gone"], 40, log="another")
    return root


def metrics(root: Path) -> list[Path]:
    """The metrics files of the run."""
    return sorted((root / f"results/metrics/{NAME}").rglob("*.json"))


def write_record(
    root: Path, output: str, rule: str, inputs: list[str], after: float, log: str = "", cut: int = 254
) -> None:
    """Write the record of a finished job as Snakemake does.

    after: seconds from the start of the run to the start of the job.  cut: length of the longest file name
    """
    encoded = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [encoded[at : at + cut] for at in range(0, len(encoded), cut)]
    path = root.joinpath(".snakemake/metadata", *(f"@{part}" for part in parts[:-1]), parts[-1])
    command = f"python -m dreamllm {rule} --config {root.resolve()}/config/smoke.yaml"
    about = {"rule": rule, "input": inputs, "log": [f"logs/{NAME}/{log or rule}.log"], "shellcmd": command}
    _write_text(path, json.dumps(about | {"starttime": WHEN + after, "endtime": WHEN + after + 5}))


def _write_checkpoint(root: Path, stage: str) -> None:
    folder = root / f"results/checkpoints/{NAME}/{stage}"
    _write_text(folder / "trained.safetensors", stage)
    about = {
        "stage": stage,
        "seed": 0,
        "code": "c0de",
        "commit": "0" * 40,
        "config": {"steps": 2, "trains": ["visual_projector"], "note": HOSTILE},
        "data": {"pairs": {"pairs-00000.tar": sha256_of_file(root / SET / "pairs-00000.tar")}},
        "foundations": {part: digest(root / "data/foundations_smoke" / part) for part in ("llm", "clip", "sd")},
        "init": [],
        "machine": "a processor, 1 of 2 cores",
        "totals": {"steps": 2, "final": {"language_loss": 1.5, "diffusion_loss": None}},
        "versions": {"python": "3.11", "torch": "2.13.0"},
    }
    _write_text(folder / "checkpoint.json", json.dumps(about))


def _write_predictions(root: Path, model: str, benchmark: str, records: list[Any], images: dict | None = None) -> None:
    stages = [] if model == "sd" else [model]
    checkpoints = {stage: digest(root / f"results/checkpoints/{NAME}/{stage}") for stage in stages}
    protocol = {
        "checkpoints": checkpoints,
        "settings": {"prompts": HOSTILE},
        "libraries": {"torch": HOSTILE},
        "machine": HOSTILE,
    }
    header = {"model": model, "benchmark": benchmark, "split": "test", "limit": None, "protocol": protocol}
    path = _prediction_path(root, model, benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions.write(path, header, records, images)


def _write_metrics(root: Path, model: str, benchmark: str, **values: float) -> None:
    path = _prediction_path(root, model, benchmark)
    numbers = {
        name: {"value": value, "n": 40, "low": value - 0.1, "high": value + 0.1} for name, value in values.items()
    }
    protocol = {"n": 40, "inputs": {path.name: sha256_of_file(path)}, "settings": {"prompts": HOSTILE}}
    content = {"model": model, "benchmark": benchmark, "split": "test", "metrics": numbers, "groups": {}}
    target = root / f"results/metrics/{NAME}/{model}/{benchmark}.json"
    _write_text(target, json.dumps(content | {"protocol": protocol}))


def _prediction_path(root: Path, model: str, benchmark: str) -> Path:
    end = "jsonl" if benchmark == "vqa" else "tar"
    return root / f"results/predictions/{NAME}/{model}/{benchmark}.{end}"


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
