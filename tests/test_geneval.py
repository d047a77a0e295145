"""GenEval-like checks of generated images: the rules on made-up detections, the detectors of transformers with random
weights, and the benchmark from its file to its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tiny
from dreamllm import cli
from dreamllm.config.pictures import Detection
from dreamllm.evaluate import detection, predictions, score, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.metrics.object_checks import Found, Wanted, overall, relations, surest, wrong
from dreamllm.evaluate.tasks import geneval
from test_pictures import configure, run_predict
from test_predict import world as predict_world

world = predict_world

LEFT, RIGHT, HIGH, LOW = (0, 40, 20, 60), (80, 40, 100, 60), (40, 0, 60, 20), (40, 80, 60, 100)


def found(name: str, box, score: float = 0.9) -> Found:
    return Found(name, score, box)


def white(objects, name):
    return ["white"] * len(objects)


# ---- the rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "other", "named"),
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        (HIGH, LOW, {"above"}),
        (LOW, HIGH, {"below"}),
        ((0, 0, 20, 20), (80, 80, 100, 100), {"left of", "above"}),  # each more than half of the way
        ((0, 0, 20, 20), (100, 10, 120, 30), {"left of"}),
        (LEFT, LEFT, set()),
        ((0, 0, 100, 100), (10, 5, 110, 105), set()),  # nearer than a tenth of both sizes
        ((0, 0, 100, 100), (50, 0, 150, 100), {"left of"}),  # they overlap, and yet (50 - 20) / 50 is above a half
    ],
)
def test_relative_positions(box, other, named):
    assert relations(box, other) == named


def test_the_surest_sixteen_above_the_threshold_count():
    objects = [found("cat", LEFT, score) for score in (0.5, 0.31, 0.3, 0.9)] + [found("dog", LEFT, 0.2)]
    kept = surest(objects, 0.3)
    assert [one.score for one in kept["cat"]] == [0.9, 0.5, 0.31] and set(kept) == {"cat"}
    assert len(surest([found("cat", LEFT, 0.5)] * 20, 0.3)["cat"]) == 16


@pytest.mark.parametrize(
    ("objects", "include", "exclude", "reasons"),
    [
        ([found("cat", LEFT)], [Wanted("cat", 1)], [], []),
        ([], [Wanted("cat", 1)], [], ["expected cat>=1, found 0"]),
        ([found("cat", LEFT)], [Wanted("cat", 1), Wanted("dog", 1)], [], ["expected dog>=1, found 0"]),
        ([found("cat", LEFT)] * 3, [Wanted("cat", 2)], [Wanted("cat", 3)], ["expected cat<3, found 3"]),
        ([found("cat", LEFT)] * 2, [Wanted("cat", 2)], [Wanted("cat", 3)], []),
        ([found("cat", LEFT)], [Wanted("cat", 1, "white")], [], []),
        ([found("cat", LEFT)], [Wanted("cat", 1, "red")], [], ["expected red cat>=1, found white"]),
        (
            [found("cat", LEFT), found("dog", RIGHT)],
            [Wanted("cat", 1), Wanted("dog", 1, position=("right of", 0))],
            [],
            [],
        ),
        (
            [found("cat", LEFT), found("dog", RIGHT)],
            [Wanted("cat", 1), Wanted("dog", 1, position=("above", 0))],
            [],
            ["expected dog above target, found right of"],
        ),
        (
            [found("dog", RIGHT)],
            [Wanted("cat", 1), Wanted("dog", 1, position=("right of", 0))],
            [],
            ["expected cat>=1, found 0", "no target for dog to be right of"],
        ),
    ],
)
def test_what_is_wrong_with_an_image(objects, include, exclude, reasons):
    assert wrong(surest(objects, 0.3), include, exclude, white) == reasons


def test_only_the_surest_objects_are_asked_for_their_colour_and_place():
    objects = surest([found("cat", LEFT, 0.9), found("cat", RIGHT, 0.5), found("dog", (40, 40, 60, 60), 0.8)], 0.3)
    asked = []
    wrong(objects, [Wanted("cat", 1, "red")], [], lambda some, name: asked.extend(some) or ["red"] * len(some))
    assert [one.box for one in asked] == [LEFT]
    assert not wrong(objects, [Wanted("dog", 1), Wanted("cat", 1, position=("left of", 0))], [], white)


def test_the_overall_score_weighs_kinds_of_prompts_alike():
    measured = overall(np.array([1.0, 1.0, 1.0, 0.0]), ["single", "single", "single", "colors"])
    assert measured["value"] == 0.5 and measured["n"] == 4 and measured["low"] <= 0.5 <= measured["high"]
    assert overall(np.array([]), [])["value"] is None


# ---- detectors with random weights ---------------------------------------------------------------------------------


def mask2former(folder: Path) -> Path:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=8,
        dim_feedforward=8, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
        id2label={0: "cat", 1: "mouse", 2: "sofa"}, label2id={"cat": 0, "mouse": 1, "sofa": 2},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def owlv2(folder: Path) -> Path:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, Owlv2Processor

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tiny.tokenizer()), "max_position_embeddings": 32}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "</s>"
    Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def detr(folder: Path) -> Path:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=8, num_detection_tokens=10, id2label={0: "cat", 1: "remote"}, label2id={"cat": 0, "remote": 1},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path):
    return tiny.foundations(tmp_path / "foundations") / "clip"


@pytest.mark.parametrize(
    ("make", "names"),
    [(mask2former, ["cat", "computer mouse", "couch"]), (owlv2, ["cat", "bench"]), (detr, ["cat", "tv remote"])],
)
def test_a_detector_of_transformers_finds_objects_of_the_names_asked_for(make, names, tmp_path):
    torch.manual_seed(3)
    detector = detection.Detector(make(tmp_path / "detector"))
    detector.check(names)
    image = tiny.picture(1, 48).resize((60, 40))
    objects = detector.find(image, names, 0.0)
    assert objects and {one.name for one in objects} <= set(names)
    for one in objects:
        assert 0 < one.score <= 1 and len(one.box) == 4
        assert (one.mask is not None) == (make is mask2former)
        if one.mask is not None:
            assert one.mask.shape == (40, 60) and one.box == detection.box_of(one.mask)
    scores = [one.score for one in objects]
    middle = (min(scores) + max(scores)) / 2
    assert len(detector.find(image, names, middle)) == sum(one > middle for one in scores)
    assert detector.find(image, names, 1.0) == []


def test_a_fixed_list_of_classes_must_hold_the_prompts_objects(tmp_path):
    detector = detection.Detector(detr(tmp_path / "detector"))
    detector.check(["cat", "tv remote"])
    with pytest.raises(BenchmarkProblem, match="the detector knows 2 classes, not bench, cow"):
        detector.check(["cow", "cat", "bench"])


def test_a_model_of_another_kind_is_no_detector(clip):
    with pytest.raises(BenchmarkProblem, match="'clip' is no object detector"):
        detection.Detector(clip)


def test_the_background_of_a_masked_object_is_grey():
    image = Image.new("RGB", (10, 8), "red")
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:5, 3:7] = True
    mask[3, 4] = False
    box = detection.box_of(mask)
    assert box == (3, 2, 7, 5)
    part = detection.crop(image, Found("cat", 0.9, box, mask))
    assert part.size == (4, 3)
    assert part.getpixel((0, 0)) == (255, 0, 0) and part.getpixel((1, 1)) == detection.BACKGROUND
    assert detection.crop(image, found("cat", (-3.0, 9.6, -1.0, 20.0))).size == (1, 1)
    assert detection.crop(image, found("cat", (2.4, 0.6, 99.0, 4.4))).size == (8, 3)


def test_colours_are_those_of_the_nearest_texts(clip):
    """With a CLIP whose texts lie on axes by the colour in them, and whose images by their own colour."""

    class Axes:
        def embed_texts(self, texts):
            places = [next(n for n, colour in enumerate(detection.COLOURS) if f" {colour}" in text) for text in texts]
            return np.eye(len(detection.COLOURS))[places]

        def embed_pictures(self, pictures):
            places = [0 if picture.getpixel((0, 0))[0] > 200 else 4 for picture in pictures]
            return np.eye(len(detection.COLOURS))[places]

    image = Image.new("RGB", (20, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    judge = detection.ColourJudge(Axes())
    assert judge.colours(image, [found("cat", (0, 0, 9, 9)), found("cat", (11, 0, 20, 9))], "cat") == ["red", "blue"]


# ---- the benchmark -------------------------------------------------------------------------------------------------

LINES = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}],
     "prompt": "a photo of two cats"},
    {"tag": "color_attr", "include": [{"class": "cat", "count": 1, "color": "red"},
     {"class": "tv remote", "count": 1, "position": ["left of", 0]}],
     "prompt": "a photo of a tv remote left of a red cat"},
]  # fmt: skip


def write_lines(folder: Path, lines=LINES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "geneval_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_four_images_of_each_prompt_are_items(tmp_path):
    write_lines(tmp_path)
    items = tasks.load("geneval", tmp_path, "test")
    assert [item.id for item in items][:5] == ["0-0", "0-1", "0-2", "0-3", "1-0"] and len(items) == 12
    assert len(tasks.load("geneval", tmp_path, "test", limit=2)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"include": []}, "empty prompt, tag or list `include`"),
        ({"include": [{"class": "cat", "count": 0}]}, r"include\[0\]: has an empty class, or a count below 1"),
        ({"include": [{"class": "cat", "count": 1, "color": "mauve"}]}, "color 'mauve' is none of red, orange"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "number of an earlier condition"),
        ({"include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}, "position should be"),
        ({"exclude": [3]}, "expected a JSON object, found int"),
        ({"tag": 3}, "field 'tag' should be str"),
    ],
)
def test_a_malformed_line_is_named(change, message, tmp_path):
    write_lines(tmp_path, [LINES[0], LINES[0] | change])
    with pytest.raises(BenchmarkProblem, match=f"line 2.*{message}"):
        tasks.load("geneval", tmp_path, "test")


def drawn(folder: Path) -> predictions.Predictions:
    """Images of the twelve items: the first two of each prompt differ from the others."""
    items = tasks.load("geneval", folder, "test")
    records = [{"id": item.id, "image": f"{item.id}.png", "prompt": item.prompt, "seed": 1} for item in items]
    images = {f"{item.id}.png": tiny.picture(int(item.id[-1]) // 2, 32) for item in items}
    protocol = {"protocol": {"benchmark": {"task": "geneval"}}}
    header = {"model": "sft", "benchmark": "geneval", "split": "test", **protocol}
    predictions.write(folder / "drawn.tar", header, records, images)
    return predictions.read(folder / "drawn.tar")


def test_images_are_scored_by_what_is_detected(tmp_path, clip, monkeypatch):
    folder = write_lines(tmp_path / "geneval")
    shown = drawn(folder)
    first = np.asarray(tiny.picture(0, 32))

    thresholds = iter([0.4] * 4 + [0.8] * 4 + [0.4] * 4)  # the middle prompt is one of counting

    def find(self, image, names, threshold):
        assert threshold == next(thresholds)
        second = [found("cat", HIGH, 0.85)] if np.array_equal(np.asarray(image), first) else []
        return [one for one in [found("cat", RIGHT), found("tv remote", LEFT), *second] if one.name in names]

    monkeypatch.setattr(detection.Detector, "find", find)
    monkeypatch.setattr(detection.ColourJudge, "colours", lambda self, image, some, name: ["red"] * len(some))
    settings = Detection(detector=str(detr(tmp_path / "detector")), threshold=0.4, counting_threshold=0.8)
    metrics, of_items = score.score_items(shown, "geneval", folder, clip.parent, detection=settings)
    values = {name: measured["value"] for name, measured in metrics["metrics"].items()}
    assert values["overall"] == pytest.approx((1 + 0.5 + 1) / 3) and values["images"] == pytest.approx(2.5 / 3)
    assert values["prompts"] == 1 and metrics["metrics"]["images"]["n"] == 3
    assert metrics["groups"]["counting"]["images"]["value"] == 0.5
    assert of_items["items"]["images"]["1-0"] == 1 and of_items["items"]["images"]["1-3"] == 0
    used = metrics["protocol"]["detection"]
    assert used["threshold"] == 0.4 and len(used["detector"]) > 8 and len(used["clip"]) > 8


def test_a_real_detector_runs_from_the_archive_to_the_metrics(tmp_path, clip):
    torch.manual_seed(3)
    folder = write_lines(tmp_path / "geneval", LINES[:2])
    settings = Detection(detector=str(owlv2(tmp_path / "detector")), threshold=0.0, counting_threshold=0.0)
    metrics, _ = score.score_items(drawn(folder), "geneval", folder, clip.parent, detection=settings)
    # Random weights find a box in each of the 16 places: one object is there, and never exactly two.
    assert metrics["groups"]["single_object"]["images"]["value"] == 1
    assert metrics["groups"]["counting"]["images"]["value"] == 0


@pytest.mark.parametrize("model", ["stage", "sd"])
def test_the_verbs_generate_and_score_four_images_of_each_prompt(model, world, tmp_path):
    write_lines(world / "benchmarks", LINES[:2])
    torch.manual_seed(3)
    owl = str(owlv2(tmp_path / "detector"))
    settings = {"detector": owl, "threshold": 0.0, "counting_threshold": 0.0}
    config = configure(world, tmp_path, drawing={"steps": 1}, detection=settings)
    content = yaml.safe_load(config.read_text()) | {"benchmarks": {"geneval": {"task": "geneval", "source": "geneval"}}}
    config.write_text(yaml.safe_dump(content))
    shown = run_predict(world, config, tmp_path / "drawn.tar", model, "geneval")
    assert list(shown.records) == [f"{prompt}-{image}" for prompt in range(2) for image in range(4)]
    assert len({record["seed"] for record in shown.records.values()}) == 8
    assert "detection" not in shown.header["protocol"]["settings"]
    files = f"--benchmarks {world}/benchmarks --foundations {world}/foundations --predictions {tmp_path}/drawn.tar"
    cli.main(f"score --benchmark geneval {files} --config {config} --out {tmp_path}/metrics.json".split())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["metrics"]["overall"]["value"] == 0.5 and metrics["protocol"]["detection"]["threshold"] == 0.0


def test_without_a_detector_there_is_no_score(tmp_path, clip):
    folder = write_lines(tmp_path / "geneval")
    metrics, _ = score.score_items(drawn(folder), "geneval", folder, clip.parent)
    assert metrics["metrics"]["overall"]["value"] is None
    assert metrics["metrics"]["overall"]["reason"] == geneval.NO_DETECTOR
