"""Writers of prompts to generate images from: GenEval, DPG-Bench, MJHQ-30K, and people's own.

As those of `placing_writers.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamllm.evaluate.files import field
from dreamllm.sources.records import Member, RecordProblem, members, one, read_json


def _text(file: Member) -> str:
    """A whole UTF-8 file. Raises RecordProblem."""
    with file.open() as opened, file.damage():
        return opened.read().decode("utf-8-sig")


def _folders(file: Member, raw: Path) -> list[str]:
    """Names of the folders below `raw`, and in archives, that a file lies in."""
    return "/".join([file.path.relative_to(raw).as_posix(), *file.inside]).split("/")[:-1]


def _draw(folder: Path, records: list[dict[str, Any]]) -> None:
    """The file of the task draw."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "draw_test.jsonl").write_text(lines, encoding="utf-8")


def geneval(raw: Path, folder: Path) -> dict[str, str]:
    """GenEval's evaluation_metadata.jsonl as it is; the task reads and checks it."""
    (folder / "geneval_test.jsonl").write_text(_text(one(raw, ".jsonl")), encoding="utf-8")
    return {}


def dpg_bench(raw: Path, folder: Path) -> dict[str, str]:
    """DPG-Bench: a prompt in each file prompts/NAME.txt, without images to compare with. The id is the file's name."""
    found = [file for file in members(raw, ".txt") if "prompts" in _folders(file, raw)]
    if not found:
        raise RecordProblem(f"{raw}: has no file prompts/NAME.txt with a prompt")
    records = [{"id": file.name.removesuffix(".txt"), "prompt": " ".join(_text(file).split())} for file in found]
    if empty := [str(file) for file, record in zip(found, records, strict=True) if not record["prompt"]]:
        raise RecordProblem(f"{empty[0]}: has no prompt")
    _draw(folder, sorted(records, key=lambda record: (len(record["id"]), record["id"])))
    return {}


def mjhq(raw: Path, folder: Path) -> dict[str, str]:
    """MJHQ-30K: meta_data.json, {id: {"category", "prompt"}}, beside images CATEGORY/ID.jpg, which get numbers."""
    file = one(raw, "meta_data.json")
    content = read_json(file)
    if not isinstance(content, dict):
        raise RecordProblem(f"{file}: expected a JSON object, found {type(content).__name__}")
    records, names = [], {}
    for number, (id_, about) in enumerate(sorted(content.items()), 1):
        prompt, category = (field(about, key, str, str(file), f"image {id_}") for key in ("prompt", "category"))
        names[f"{number:06d}.jpg"] = f"{id_}.jpg"
        records.append({"id": id_, "prompt": " ".join(prompt.split()), "image_id": number, "category": category})
    _draw(folder, records)
    return names


def prompts(raw: Path, folder: Path) -> dict[str, str]:
    """People's own prompts, one on each line of a .txt file, without pictures to compare with (docs/your-data.md)."""
    file = one(raw, ".txt")
    lines = _text(file).split("\n")
    told = [(number, " ".join(line.split())) for number, line in enumerate(lines, 1) if line.strip()]
    if not told:
        raise RecordProblem(f"{file}: has no prompt; write one on each line")
    _draw(folder, [{"id": number, "prompt": prompt} for number, prompt in told])
    return {}


WRITERS = {"prompts": prompts, "geneval": geneval, "dpg_bench": dpg_bench, "mjhq": mjhq}
