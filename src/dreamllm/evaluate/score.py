"""Predictions to metrics: `dreamllm score`.

Pure arithmetic on a prediction file and the benchmark it answers: no model of ours runs, only the judge and CLIP look
at drawn pictures. Shares are fractions of 1, CIDEr is in pycocoevalcap's unit, all numbers have n and a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamllm.atomic import new_file
from dreamllm.config.benchmarks import DRAWN, AnswerJudge
from dreamllm.config.reading import load
from dreamllm.digests import digest, sha256_of_file
from dreamllm.emoji.grammar import parse_caption
from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate import (
    attention,
    attributes,
    benchmarks,
    captions,
    choice,
    exams,
    fid,
    harness,
    in_context,
    latency,
    pope,
    shots,
    stories,
    vqa,
)
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.groups import Metrics, by_group
from dreamllm.evaluate.intervals import mean_bootstrap, mean_share, undefined
from dreamllm.evaluate.predictions import Predictions, check_complete, read
from dreamllm.sources.services.chat import Chat

if TYPE_CHECKING:
    from dreamllm.emoji.foundations.scene_classifier import SceneClassifier

EXTERNAL = exams.EXTERNAL
MEASURED_APART = "pictures of public sets are measured by evaluation.pictures (docs/pictures.md)"
LIBRARIES = ("numpy", "pillow", "torch", "transformers", "pycocoevalcap", "clean-fid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm score`."""
    parser.add_argument("--benchmark", required=True, help="name of the benchmark that the predictions are for")
    parser.add_argument("--predictions", required=True, type=Path, help="file written by `dreamllm predict`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--foundations", required=True, type=Path, help="folder with judge/ and clip/, for pictures")
    parser.add_argument("--config", type=Path, help="experiment whose `answer_judge` is asked; without it none is")
    parser.add_argument("--judgements", type=Path, help="folder that keeps the judge's answers")
    parser.add_argument("--out", required=True, type=Path, help="metrics file to write (JSON)")


def main(args: argparse.Namespace) -> None:
    """Score one prediction file and write its metrics file."""
    judge = AnswerJudge()
    if args.config and args.judgements:
        judge = load(args.config).answer_judge
    chat = Chat(judge, args.judgements, os.environ.get("OPENAI_API_KEY", "")) if judge.endpoint else None
    result = score(
        read(args.predictions), args.benchmark, args.benchmarks, args.foundations, chat=chat, judgings=judge.judgings
    )
    with new_file(args.out) as file:
        file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def score(
    predictions: Predictions,
    benchmark: str,
    folder: Path,
    foundations: Path,
    *,
    chat: Chat | None = None,
    judgings: int = 1,
) -> dict[str, Any]:
    """All metrics of a prediction file, ready for JSON.

    chat: the language model that judges answers to MMBench and MM-Vet, of MM-Vet `judgings` times
    Raises BenchmarkProblem when the predictions are for another benchmark, or not exactly one per item.
    """
    header = predictions.header
    if header["benchmark"] != benchmark:
        raise BenchmarkProblem(predictions.path, "header", f"is for {header['benchmark']!r}, not for {benchmark!r}")
    task = header.get("task", benchmark)
    few = "shots" in header  # every question was asked with several numbers of examples
    result: dict[str, Any]
    if task == "harness":
        items, result = list(predictions.records), harness.score(predictions)
    else:
        items = benchmarks.load(task, folder, header["split"], header.get("limit"))
        items = [replace(i, id=shots.item_id(n, i.id)) for n in header["shots"] for i in items] if few else items
        check_complete(predictions, [item.id for item in items])
    if task in DRAWN and header.get("protocol", {}).get("benchmark"):
        result = {"metrics": {"fid": undefined(MEASURED_APART)}, "groups": {}}
    elif task in DRAWN:
        result = score_draw(items, predictions, benchmarks.pictures(folder, header["split"]), foundations)
    elif task == "in_context":
        shown = in_context.context_pictures(folder, header["split"])
        judging = _judge(foundations / "judge", [Scene.from_json(item.scene.scene) for item in items])
        result = in_context.score(items, predictions, shown, judging)
    elif task == "attention":
        result = attention.score(predictions)
    elif task == "stories":
        result = score_stories(items, predictions, foundations)
    elif task == "mmbench":
        result = exams.score_mmbench(items, predictions, chat)
    elif task == "mm_vet":
        result = exams.score_mm_vet(items, predictions, chat, judgings)
    elif few:
        result = score_few_shot(items, predictions, header["shots"])
    elif task != "harness":
        score_texts = {"captions": score_captions, "vqa": score_vqa, "pope": score_pope, "language": score_language}
        score_texts["latency"] = latency.score
        result = score_texts[task](items, predictions)
    files = [] if task == "harness" else benchmarks.files(task, folder, header["split"])
    inputs = {file.name: sha256_of_file(file) for file in files}
    protocol = header.get("protocol", {}) | {
        "n": len(items),
        "limit": header.get("limit"),
        "scorer": {name: version(name) for name in LIBRARIES},
        "inputs": {predictions.path.name: sha256_of_file(predictions.path)} | inputs,
    }
    looking = {"stories": ("judge",), **dict.fromkeys(DRAWN, ("judge", "clip"))}.get(task, ())
    if looking and "benchmark" not in header.get("protocol", {}):  # those of public sets are measured apart
        protocol["instruments"] = {name: digest(foundations / name) for name in looking}
    if chat:
        protocol["judge"] = {"models": sorted(chat.models), "judgings": judgings, "cost": chat.cost()}
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

    return by_group(measure, [_scene_groups(item) for item in items])


def score_vqa(items: list[benchmarks.VqaItem], predictions: Predictions) -> dict[str, Any]:
    """VQA accuracy by the challenge's rule and by EvalAI's, by type of question and by kind of scene."""
    outputs = [vqa.clip(predictions.get(item.id, "output", str)) for item in items]
    if not all(item.answers for item in items):
        return {"metrics": dict.fromkeys(("accuracy", "accuracy_evalai"), undefined(EXTERNAL)), "groups": {}}
    pairs = list(zip(outputs, items, strict=True))
    official = [vqa.accuracy(output, item.answers, "official") for output, item in pairs]
    evalai = [vqa.accuracy(output, item.answers, "evalai") for output, item in pairs]

    def measure(chosen: Sequence[int]) -> Metrics:
        return {
            "accuracy": mean_share([official[i] for i in chosen]),
            "accuracy_evalai": mean_share([evalai[i] for i in chosen]),
        }

    types = [[f"type/{item.question_type}"] if item.question_type else [] for item in items]
    return by_group(measure, [of_type + _scene_groups(item) for of_type, item in zip(types, items, strict=True)])


def score_few_shot(items: list[benchmarks.VqaItem], predictions: Predictions, numbers: list[int]) -> dict[str, Any]:
    """VQA accuracy in a group shots/N for each number of examples; over different numbers there is none.

    items: those of the first number, then those of the next
    """
    size = len(items) // len(numbers)
    groups = {
        f"shots/{number}": score_vqa(items[place * size : (place + 1) * size], predictions)["metrics"]
        for place, number in enumerate(numbers)
    }
    return {"metrics": {}, "groups": groups}


def score_pope(items: list[benchmarks.PopeItem], predictions: Predictions) -> dict[str, Any]:
    """POPE's five numbers over all questions and for each way of choosing the absent objects."""
    outputs = [predictions.get(item.id, "output", str) for item in items]

    def measure(chosen: Sequence[int]) -> Metrics:
        return pope.score([outputs[i] for i in chosen], [items[i].label for i in chosen])

    return by_group(measure, [[item.subset] for item in items])


def score_language(items: list[benchmarks.ChoiceItem], predictions: Predictions) -> dict[str, Any]:
    """Multiple-choice accuracy over all questions and for each set."""
    right = []
    for item in items:
        values = predictions.get(item.id, "loglikelihoods", list)
        try:
            right.append(choice.choose(values, item.options, choice.RULES[item.task]) == item.answer)
        except (TypeError, ValueError) as error:
            raise BenchmarkProblem(predictions.path, f"item {item.id}", str(error)) from None
    return by_group(lambda chosen: {"accuracy": mean_share([right[i] for i in chosen])}, [[i.task] for i in items])


def score_draw(
    items: list[benchmarks.DrawItem | benchmarks.IllustrationItem],
    predictions: Predictions,
    real: benchmarks.Pictures,
    foundations: Path,
) -> dict[str, Any]:
    """FID over all pictures (none by kind: too few), and where scenes are known the judge's attributes by kind.

    FID by the mini CLIP's features; that of public sets is `pictures.py`.
    """
    from dreamllm.evaluate import features, networks

    places = [(predictions.get(item.id, "image", str), f"item {item.id}") for item in items]
    result: dict[str, Any] = {"metrics": {}, "groups": {}}
    if all(getattr(item, "scene", None) for item in items):
        wanted = [Scene.from_json(item.scene.scene) for item in items]  # type: ignore[union-attr]
        judging = _judge(foundations / "judge", wanted)
        right = attributes.compare_each(judging.predict([predictions.image(*place) for place in places]), wanted)
        right_on_real = attributes.compare_each(judging.predict([real.read(item.picture) for item in items]), wanted)

        def measure(chosen: Sequence[int]) -> Metrics:
            return {name: mean_share([right[name][i] for i in chosen]) for name in attributes.ATTRIBUTES}

        result = by_group(measure, [_scene_groups(item) for item in items])
        result["metrics"]["judge_on_real"] = mean_share(right_on_real["all"])  # what a perfect model could reach
    network = networks.clip_network(foundations / "clip")
    drawn = features.extract(lambda number: predictions.image(*places[number]), len(places), [network])
    about, known = features.of_real(items, real, [network])
    result["metrics"]["fid"] = fid.score(drawn["clip"], known["clip.mean"], known["clip.covariance"], about["n"])
    return result


def score_stories(items: list[benchmarks.StoryItem], predictions: Predictions, foundations: Path) -> dict[str, Any]:
    """Placement of the pictures, stories ended by the model, and what the judge sees in each picture of a story."""
    parts = {item.id: _story_parts(predictions, item.id) for item in items}
    ended = [predictions.get(item.id, "stopped", str) == "end" for item in items]
    placed = [stories.well_placed(item.opening, parts[item.id]) for item in items]
    wanted = [list(stories.wanted_scenes(Scene.from_json(item.scenes[0]), parts[item.id])) for item in items]
    names = [(item.id, part["image"]) for item in items for part in parts[item.id] if "image" in part]
    judging = _judge(foundations / "judge", [Scene.from_json(scene) for item in items for scene in item.scenes])
    seen = judging.predict([predictions.image(name, f"item {id_}") for id_, name in names])
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


def _judge(folder: Path, wanted: Sequence[Scene]) -> SceneClassifier:
    """The judge of drawn pictures. Raises BenchmarkProblem for scenes with objects that it was not trained to tell."""
    from dreamllm.emoji.foundations import scene_classifier

    judging = scene_classifier.load(folder)
    if strange := sorted({name for scene in wanted for name, _ in scene.objects} - set(judging.names)):
        what = f"knows no {', no '.join(strange)}: train foundations on this world, or take one of fewer pictograms"
        raise BenchmarkProblem(folder, "", what)
    return judging


def _story_parts(predictions: Predictions, id_: str) -> list[stories.Part]:
    parts = predictions.get(id_, "parts", list)
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.keys() not in ({"text"}, {"image"}):
            raise BenchmarkProblem(predictions.path, f"item {id_}", f"part {number} is neither a text nor an image")
    return parts


def _scene_groups(item: Any) -> list[str]:
    return item.scene.groups if item.scene else []
