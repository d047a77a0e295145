"""Image generation for benchmarks: resuming after a kill, rewritten prompts, latency, images of whole documents,
other numbers of dream queries.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

import repository
import tiny
from dreamllm import provenance
from dreamllm.config.evaluation import Drawing, EvaluationSettings
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.data.document import Document, Picture, Text
from dreamllm.emoji.world import write_training
from dreamllm.evaluate import drawing, predictions, score, tasks
from dreamllm.evaluate.files import BenchmarkProblem, pictures_of
from dreamllm.evaluate.image_predictions import ImageFolder
from dreamllm.evaluate.tasks import latency
from dreamllm.evaluate.tasks.draw import DrawItem
from dreamllm.evaluate.tasks.illustrations import IllustrationItem
from dreamllm.model import generate
from dreamllm.train import checkpoint, trainer
from test_pictures import STAGE, configure, run_predict
from test_predict import world as predict_world

world = predict_world


# ---- going on after a kill -----------------------------------------------------------------------------------------


def test_a_run_that_was_killed_draws_only_what_is_missing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(world, tmp_path, drawing={"steps": 1, "batch_size": 1})
    work = ["--work", str(tmp_path / "work")]
    run_predict(world, config, tmp_path / "whole.tar", "stage", "draw")
    draw, drawn = drawing.draw, []

    def killed_after_two(*args):
        for one, picture in draw(*args):
            if len(drawn) == 2:
                raise KeyboardInterrupt
            drawn.append(one.name)
            yield one, picture

    monkeypatch.setattr(drawing, "draw", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_predict(world, config, tmp_path / "cut.tar", "stage", "draw", *work)
    assert not (tmp_path / "cut.tar").exists()
    monkeypatch.setattr(
        drawing, "draw", lambda *args: ((drawn.append(one.name), (one, p))[1] for one, p in draw(*args))
    )
    run_predict(world, config, tmp_path / "cut.tar", "stage", "draw", *work)
    assert drawn == ["000000.png", "000001.png", "000002.png", "000003.png"]
    assert (tmp_path / "cut.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()
    assert list((tmp_path / "work").iterdir()) == []


def test_pictures_of_other_settings_are_not_taken_for_these(world: Path, tmp_path: Path) -> None:
    one = ImageFolder(tmp_path, {"steps": 1})
    one.add("000000.png", tiny.picture())
    assert "000000.png" in ImageFolder(tmp_path, {"steps": 1}) and "000000.png" not in ImageFolder(
        tmp_path, {"steps": 2}
    )
    assert one["000000.png"].tobytes() == tiny.picture().tobytes() and list(one) == ["000000.png"]


# ---- rewritten prompts, time, documents ----------------------------------------------------------------------------


def test_rewritten_prompts_are_drawn_by_stable_diffusion_and_both_are_recorded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = [{"model": "anew", "stages": ["stage"], "benchmarks": ["draw"], "rewrite": True}]
    config = configure(world, tmp_path, evaluations=evaluations)
    texts = ["a dog"] * 3 + [""]
    monkeypatch.setattr(generate, "write", lambda *_, **__: texts)
    anew = run_predict(world, config, tmp_path / "anew.tar", "anew", "draw")
    plain = run_predict(world, config, tmp_path / "sd.tar", "sd", "draw")
    assert [record.get("rewritten") for record in anew.records.values()] == ["a dog"] * 3 + [""]
    assert anew.header["protocol"]["rewritten"] == {"prompts": 4, "empty": 1}
    assert [r["prompt"] for r in anew.records.values()] == [r["prompt"] for r in plain.records.values()]
    assert anew.image("000000.png", "").tobytes() != plain.image("000000.png", "").tobytes()
    assert scored_n(world, anew) == 4


def scored_n(world: Path, drawn: predictions.Predictions) -> int:
    return score.score(drawn, drawn.header["benchmark"], world / "benchmarks", world / "foundations")["protocol"]["n"]


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"model": "sd", "benchmarks": ["draw"], "rewrite": True}, "sd was trained on no instructions"),
        (
            {"model": "stage", "benchmarks": ["draw", "vqa"], "rewrite": True},
            "rewrite works for the tasks draw, draw_human, narratives only, not for vqa",
        ),
    ],
)
def test_what_cannot_rewrite(world: Path, tmp_path: Path, evaluation: dict, words: str) -> None:
    with pytest.raises(ConfigProblem, match=words):
        tasks.check(load(configure(world, tmp_path, evaluations=[evaluation])), "config.yaml")


def test_latency_is_seconds_per_picture_by_steps(world: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path, latency={"steps": [1, 4], "pictures": 3})
    for model in ("sd", "stage"):
        times = run_predict(world, config, tmp_path / f"{model}.jsonl", model, "latency")
        result = score.score(times, "latency", world / "benchmarks", world / "foundations")
        assert set(result["groups"]) == {"steps/1", "steps/4"} and result["protocol"]["machine"] == provenance.machine()
        assert all(group["seconds"]["value"] > 0 and group["seconds"]["n"] == 3 for group in result["groups"].values())


def test_the_first_picture_is_not_timed_and_one_is_drawn_at_a_time() -> None:
    seen = []

    def draw(wanted, how):
        seen.append((how.steps, how.batch_size, [one.item.id for one in wanted]))
        yield from ((one, None) for one in wanted)

    items = [DrawItem(id_, "a cat", "0.png", None) for id_ in "ab"]
    settings = EvaluationSettings(latency={"steps": [50, 100]})
    records = latency.measure(items, draw, settings)
    assert seen == [(50, 1, ["a", "a", "b"]), (100, 1, ["a", "a", "b"])]
    assert [set(record["seconds"]) for record in records] == [{"50", "100"}] * 2


def test_documents_are_illustrated_from_all_text_and_the_own_pictures_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Document] = []

    def draw(model, processor, documents, seeds, how):
        given.extend(documents)
        return [tiny.picture(seed, 8) for seed in seeds]

    class Anything:
        def lay_out_prompt(self, document, mode, *, draw):
            if len(document.parts) > 3:
                raise drawing.LayoutProblem("too long")

    monkeypatch.setattr(generate, "draw", draw)
    items = [
        IllustrationItem("a-0", "a", 0, "two", "one two", "1.png"),
        IllustrationItem("a-1", "a", 1, "three", "three", "2.png"),
        IllustrationItem("a-2", "a", 2, "four", "four", "3.png"),
        IllustrationItem("b-0", "b", 0, "else", "else", "4.png"),
    ]
    wanted = drawing.plan(items, 5, 0)
    drawn: dict[str, Image.Image] = {"000001.png": tiny.picture(99, 8)}  # from before a kill
    order = []
    for one, picture in drawing.illustrate(None, Anything(), wanted, Drawing(batch_size=8), drawn):
        drawn[one.name] = picture
        order.append(one.item.id)
    assert order == ["a-0", "b-0", "a-2"]
    assert given[0].parts == (Text("one two"),) and given[1].parts == (Text("else"),)
    # The document before its third picture is too long by its first sentence and picture; the second one is the stored.
    text, picture, last = given[2].parts
    assert (text, last) == (Text("three"), Text("four")) and isinstance(picture, Picture)
    assert picture.image.tobytes() == tiny.picture(99, 8).tobytes()


def test_illustrations_are_drawn_by_both_kinds_of_model_and_scored(world: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path)
    items = tasks.load("illustrations", world / "benchmarks", "test")
    assert [(item.id, item.position) for item in items[:4]] == [("0-0", 0), ("0-1", 1), ("0-2", 2), ("1-0", 0)]
    for model in ("sd", "stage"):
        drawn = run_predict(world, config, tmp_path / f"{model}.tar", model, "illustrations")
        assert list(drawn.records) == [item.id for item in items]
        assert scored_n(world, drawn) == 6


def test_broken_illustrations_are_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "benchmarks", tmp_path / "b")
    file = tmp_path / "b/illustrations_test.jsonl"
    whole = [json.loads(line) for line in file.read_text().splitlines()]
    for change, words in [
        ({"image_ids": [8, 9]}, "needs a text and an image id"),
        ({"sentences": ["a", "", "b"]}, "needs a text and an image id"),
        ({"image_ids": [8, "nine", 10]}, "image id 'nine' is neither"),
        ({"image_ids": [8, 999, 10]}, "picture 999 is not in"),
        ({"id": whole[1]["id"]}, "occurs twice"),
    ]:
        file.write_text("".join(json.dumps(line) + "\n" for line in [whole[0] | change, whole[1]]))
        with pytest.raises(BenchmarkProblem, match=words):
            tasks.load("illustrations", tmp_path / "b", "test")
    file.write_text(json.dumps({"id": 0, "sentences": ["a.", "b.", "c."], "image_ids": [None, 8, None]}))
    (item,) = tasks.load("illustrations", tmp_path / "b", "test")
    assert (item.prompt, item.text, item.position) == ("b.", "a. b.", 0)


# ---- other numbers of dream queries --------------------------------------------------------------------------------


def test_a_stage_with_another_number_of_queries_trains_and_draws(world: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((world / "config.yaml").read_text())
    content["world"]["training"] = {"pairs": 4, "stories": 1, "instructions": 1, "text": 1}
    content["stages"] = {"few": STAGE | {"num_dream_queries": 2, "context": 128}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    experiment = load(tmp_path / "config.yaml")
    write_training(experiment.world, tmp_path / "train")
    folders = {"data": [tmp_path / "train"], "init": [], "out": tmp_path / "few", "work": tmp_path / "work"}
    trainer.train(experiment, "few", foundations=world / "foundations", **folders)
    model, _ = checkpoint.load_model(world / "foundations", [tmp_path / "few"])
    assert model.dream_queries.shape[1] == 2


def test_the_world_writes_a_picture_for_every_sentence_of_every_story(world: Path) -> None:
    shown = pictures_of(world / "benchmarks", "test")
    for item in tasks.load("illustrations", world / "benchmarks", "test"):
        assert shown.read(item.picture).size == (48, 48)


# ---- in the DAG and in the metrics of real sets --------------------------------------------------------------------


def test_the_pictures_of_public_sets_have_no_fid_on_the_mini_clip(world: Path, tmp_path: Path) -> None:
    drawn = run_predict(world, configure(world, tmp_path), tmp_path / "sd.tar", "sd", "draw")
    drawn.header["protocol"]["benchmark"] = {"task": "draw", "source": "coco_fid"}
    fid = score.score(drawn, "draw", world / "benchmarks", world / "foundations")["metrics"]["fid"]
    assert fid["value"] is None and "docs/pictures.md" in fid["reason"]


def test_every_sample_is_a_job_and_one_set_of_real_pictures_serves_all(tmp_path: Path) -> None:
    checkout = repository.copy(tmp_path / "checkout")
    content = yaml.safe_load((checkout / "config/smoke.yaml").read_text())
    content["evaluation"]["pictures"] = {"samples": 3, "features": "clip"}
    content["evaluations"] = [
        {"model": "sd", "benchmarks": ["draw", "illustrations", "latency"]},
        {"model": "sft", "benchmarks": ["draw"]},
    ]
    (checkout / "config/smoke.yaml").write_text(yaml.safe_dump(content))
    jobs = repository.jobs(checkout, "results/tables", "--configfile=config/smoke.yaml")
    count = Counter(rule for rule, _, _ in jobs)
    assert (count["predict_pictures"], count["predict_sample"], count["features"]) == (3, 6, 9)
    assert (count["real_statistics"], count["score_pictures"], count["score"]) == (2, 3, 4)
    made = [path for _, _, files in jobs for path in files]
    assert "results/predictions/smoke/sft/samples/draw-2.tar" in made
    assert "results/metrics/smoke/sd/pictures/illustrations.json" in made
