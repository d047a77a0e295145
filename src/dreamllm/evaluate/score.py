"""Predictions to metrics: `dreamllm score`.

Pure arithmetic on a prediction file and the benchmark it answers: no model of ours runs, only the judge and CLIP look
at drawn pictures. Shares are fractions of 1, CIDEr is in pycocoevalcap's unit, all numbers have n and a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.data.emoji import Scene
from dreamllm.data.grammar import parse_caption
from dreamllm.digests import sha256_of_file
from dreamllm.evaluate import attributes, benchmarks, captions, choice, fid, latency, pope, stories, vqa
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.intervals import mean_bootstrap, mean_share
from dreamllm.evaluate.predictions import Predictions, check_complete, read

Metrics = dict[str, dict[str, Any]]
Measure = Callable[[Sequence[int]], Metrics]  # metrics of some of the items, given by their numbers

LIBRARIES = ("numpy", "pillow", "torch", "transformers", "pycocoevalcap", "clean-fid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm score`."""
    parser.add_argument("--benchmark", required=True, choices=sorted(benchmarks.FILES))
    parser.add_argument("--predictions", required=True, type=Path, help="file written by `dreamllm predict`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--foundations", required=True, type=Path, help="folder with judge/ and clip/, for pictures")
    parser.add_argument("--out", required=True, type=Path, help="metrics file to write (JSON)")


def main(args: argparse.Namespace) -> None:
    """Score one prediction file and write its metrics file."""
    result = score(read(args.predictions), args.benchmark, args.benchmarks, args.foundations)
    with new_file(args.out) as file:
        file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def score(predictions: Predictions, benchmark: str, folder: Path, foundations: Path) -> dict[str, Any]:
    """All metrics of a prediction file, ready for JSON.

    Raises BenchmarkProblem when the predictions are for another benchmark, or not exactly one per item.
    """
    header = predictions.header
    if header["benchmark"] != benchmark:
        raise BenchmarkProblem(predictions.path, "header", f"is for {header['benchmark']!r}, not for {benchmark!r}")
    items = benchmarks.load(benchmark, folder, header["split"], header.get("limit"))
    check_complete(predictions, [item.id for item in items])
    if benchmark in ("draw", "illustrations"):
        result = score_draw(items, predictions, benchmarks.pictures(folder, header["split"]), foundations)
    elif benchmark == "stories":
        result = score_stories(items, predictions, foundations)
    else:
        score_texts = {
            "latency": latency.score,
            "captions": score_captions,
            "vqa": score_vqa,
            "pope": score_pope,
            "language": score_language,
        }
        result = score_texts[benchmark](items, predictions)
    inputs = {file.name: sha256_of_file(file) for file in benchmarks.files(benchmark, folder, header["split"])}
    protocol = header.get("protocol", {}) | {
        "n": len(items),
        "limit": header.get("limit"),
        "scorer": {name: version(name) for name in LIBRARIES},
        "inputs": {predictions.path.name: sha256_of_file(predictions.path)} | inputs,
    }
    return {"model": header["model"], "benchmark": benchmark, "split": header["split"], **result, "protocol": protocol}


def score_captions(items: list[benchmarks.CaptionItem], predictions: Predictions) -> dict[str, Any]:
    """CIDEr, and where the scenes are known how much of them the captions tell."""
    texts = {item.id: predictions.get(item.id, "output", str) for item in items}
    ciders = captions.cider(texts, {item.id: item.references for item in items})
    found = [parse_caption(texts[item.id]) for item in items]

    def measure(chosen: Sequence[int]) -> Metrics:
        metrics = {"cider": mean_bootstrap([ciders[items[i].id] for i in chosen])}
        if all(items[i].scene for i in chosen):
            wanted = [Scene.from_json(items[i].scene.scene) for i in chosen]  # type: ignore[union-attr]
            right = attributes.compare_each([found[i] for i in chosen], wanted)
            metrics["exact"] = mean_share(right["all"])
            metrics |= {name: mean_share(right[name]) for name in ("object", "colour", "bind")}
            metrics["readable"] = mean_share([found[i] is not None for i in chosen])
        return metrics

    return _by_group(measure, [_scene_groups(item) for item in items])


def score_vqa(items: list[benchmarks.VqaItem], predictions: Predictions) -> dict[str, Any]:
    """VQA accuracy by the challenge's rule and by EvalAI's, by type of question and by kind of scene."""
    outputs = [vqa.clip(predictions.get(item.id, "output", str)) for item in items]
    pairs = list(zip(outputs, items, strict=True))
    official = [vqa.accuracy(output, item.answers, "official") for output, item in pairs]
    evalai = [vqa.accuracy(output, item.answers, "evalai") for output, item in pairs]

    def measure(chosen: Sequence[int]) -> Metrics:
        return {
            "accuracy": mean_share([official[i] for i in chosen]),
            "accuracy_evalai": mean_share([evalai[i] for i in chosen]),
        }

    types = [[f"type/{item.question_type}"] if item.question_type else [] for item in items]
    return _by_group(measure, [of_type + _scene_groups(item) for of_type, item in zip(types, items, strict=True)])


def score_pope(items: list[benchmarks.PopeItem], predictions: Predictions) -> dict[str, Any]:
    """POPE's five numbers over all questions and for each way of choosing the absent objects."""
    outputs = [predictions.get(item.id, "output", str) for item in items]

    def measure(chosen: Sequence[int]) -> Metrics:
        return pope.score([outputs[i] for i in chosen], [items[i].label for i in chosen])

    return _by_group(measure, [[item.subset] for item in items])


def score_language(items: list[benchmarks.ChoiceItem], predictions: Predictions) -> dict[str, Any]:
    """Multiple-choice accuracy over all questions and for each set."""
    right = []
    for item in items:
        values = predictions.get(item.id, "loglikelihoods", list)
        try:
            right.append(choice.choose(values, item.options, choice.RULES[item.task]) == item.answer)
        except (TypeError, ValueError) as error:
            raise BenchmarkProblem(predictions.path, f"item {item.id}", str(error)) from None
    return _by_group(lambda chosen: {"accuracy": mean_share([right[i] for i in chosen])}, [[i.task] for i in items])


def score_draw(
    items: list[benchmarks.DrawItem | benchmarks.IllustrationItem],
    predictions: Predictions,
    real: benchmarks.Pictures,
    foundations: Path,
) -> dict[str, Any]:
    """FID over all pictures (none by kind: too few), and where scenes are known the judge's attributes by kind.

    FID by CLIP's features, so it does not compare with FIDs on Inception's; those are `pictures.py`.
    """
    from dreamllm.evaluate import features, networks

    places = [(predictions.get(item.id, "image", str), f"item {item.id}") for item in items]
    result: dict[str, Any] = {"metrics": {}, "groups": {}}
    if all(getattr(item, "scene", None) for item in items):
        from dreamllm.foundations import judge

        judging = judge.load(foundations / "judge")
        wanted = [Scene.from_json(item.scene.scene) for item in items]  # type: ignore[union-attr]
        right = attributes.compare_each(judging.predict([predictions.image(*place) for place in places]), wanted)
        right_on_real = attributes.compare_each(judging.predict([real.read(item.picture) for item in items]), wanted)

        def measure(chosen: Sequence[int]) -> Metrics:
            return {name: mean_share([right[name][i] for i in chosen]) for name in attributes.ATTRIBUTES}

        result = _by_group(measure, [_scene_groups(item) for item in items])
        result["metrics"]["judge_on_real"] = mean_share(right_on_real["all"])  # what a perfect model could reach
    network = networks.clip_network(foundations / "clip")
    drawn = features.extract(lambda number: predictions.image(*places[number]), len(places), [network])
    about, known = features.of_real(items, real, [network])
    result["metrics"]["fid"] = fid.score(drawn["clip"], known["clip.mean"], known["clip.covariance"], about["n"])
    return result


def score_stories(items: list[benchmarks.StoryItem], predictions: Predictions, foundations: Path) -> dict[str, Any]:
    """Placement of the pictures, stories ended by the model, and what the judge sees in each picture of a story."""
    from dreamllm.foundations import judge

    parts = {item.id: _story_parts(predictions, item.id) for item in items}
    ended = [predictions.get(item.id, "stopped", str) == "end" for item in items]
    placed = [stories.well_placed(item.opening, parts[item.id]) for item in items]
    wanted = [list(stories.wanted_scenes(Scene.from_json(item.scenes[0]), parts[item.id])) for item in items]
    names = [(item.id, part["image"]) for item in items for part in parts[item.id] if "image" in part]
    seen = judge.load(foundations / "judge").predict([predictions.image(name, f"item {id_}") for id_, name in names])
    followed = [scene for scenes in wanted for scene in scenes]
    right = [attributes.compare(found, scene) if scene else {} for found, scene in zip(seen, followed, strict=True)]
    metrics = {
        "placement": mean_share(placed),
        "ended": mean_share(ended),
        "followed": mean_share([None not in scenes for scenes in wanted]),
    }
    for name in attributes.ATTRIBUTES:  # a picture in a story that cannot be followed is wrong
        metrics[name] = mean_share([of_picture.get(name, False) for of_picture in right], "no picture was drawn")
    return {"metrics": metrics, "groups": {}}


def _story_parts(predictions: Predictions, id_: str) -> list[stories.Part]:
    parts = predictions.get(id_, "parts", list)
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.keys() not in ({"text"}, {"image"}):
            raise BenchmarkProblem(predictions.path, f"item {id_}", f"part {number} is neither a text nor an image")
    return parts


def _by_group(measure: Measure, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Metrics of all items and of each group; groups: names of the groups that each item belongs to."""
    names = sorted({name for of_item in groups for name in of_item})
    members = {name: [i for i, of_item in enumerate(groups) if name in of_item] for name in names}
    return {"metrics": measure(range(len(groups))), "groups": {name: measure(members[name]) for name in names}}


def _scene_groups(item: Any) -> list[str]:
    return item.scene.groups if item.scene else []
