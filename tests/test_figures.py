"""Figures from hand-made predictions: items are chosen by rule, and a figure without data is left out with a reason."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreamllm.config.world import World
from dreamllm.emoji.scenes import Scene, render
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import predictions, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.groups import SceneRecord
from dreamllm.evaluate.tasks.draw import DrawItem
from dreamllm.evaluate.tasks.vqa import VqaItem
from dreamllm.results import figures, pictures
from dreamllm.results.figure_captions import CAPTIONS

COUNTS = {"pictures": 12, "draw": 12, "stories": 2, "language": 1, "in_context": 12}


def header(model: str, benchmark: str) -> dict[str, str]:
    return {"model": model, "benchmark": benchmark, "split": "test"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmarks, losses of two stages, and the predictions of models that are right."""
    folder = tmp_path_factory.mktemp("made")
    write_benchmarks(World(picture_side=48, benchmarks=COUNTS), "test", folder)
    for stage, columns in (("align", "{0},,{1}"), ("sft", "{0},{1},{1}")):
        lines = [columns.format(step, 1 / step) for step in range(1, 40)]
        (folder / f"{stage}.csv").write_text("\n".join(["step,language_loss,diffusion_loss", *lines]) + "\n")
    for model, benchmark in (
        ("sft", "draw"),
        ("sd", "in_context"),
        ("sft", "in_context"),
        ("sft_contexts", "in_context"),
    ):
        items = tasks.load(benchmark, folder, "test")
        images = {f"{item.id}.png": render(Scene.from_json(item.scene.scene), 48) for item in items}
        records = [{"id": item.id, "prompt": item.prompt, "image": f"{item.id}.png"} for item in items]
        predictions.write(folder / f"{model}_{benchmark}.tar", header(model, benchmark), records, images)
    told = [{"text": "then"}, {"image": "0.png"}, {"text": "the end."}]
    records = [{"id": "0", "prompt": "a cat.", "parts": told}, {"id": "1", "prompt": "no picture.", "parts": []}]
    picture = Image.new("RGB", (48, 48), "red")
    predictions.write(folder / "told.tar", header("sft", "stories"), records, {"0.png": picture})
    questions = tasks.load("vqa", folder, "test")
    for model in pictures.COMPARED:
        said = [item.answers[0] if model == "sft" or int(item.id) % 3 else "" for item in questions]
        records = [{"id": item.id, "output": words} for item, words in zip(questions, said, strict=True)]
        predictions.write(folder / f"{model}_vqa.jsonl", header(model, "vqa"), records)
    maps = torch.rand(12, 16, 12, 12, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    tensors = {"maps": maps, "pictures": torch.zeros(12, 48, 48, 3, dtype=torch.uint8)}
    records = [{"id": item.id, "prompt": item.prompt} for item in tasks.load("draw", folder, "test")]
    predictions.write_tensors(folder / "maps.safetensors", header("sft", "attention"), records, tensors)
    return folder


def given(folder: Path, out: Path, **changes: object) -> argparse.Namespace:
    """Arguments of `dreamllm figures` for all that the fixture made."""
    arguments = {
        "losses": [f"{stage}={folder / stage}.csv" for stage in ("align", "sft")],
        "drawings": [folder / "sft_draw.tar"],
        "stories": folder / "told.tar",
        "answers": [folder / f"{model}_vqa.jsonl" for model in pictures.COMPARED],
        "in_context": [folder / f"{model}_in_context.tar" for model in ("sft", "sft_contexts", "sd")],
        "trained": ["sft_contexts"],
        "attention": folder / "maps.safetensors",
        "benchmarks": folder,
        "out": out,
    }
    return argparse.Namespace(**arguments | changes)


def test_equal_data_give_equal_bytes(made: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        figures.main(given(made, tmp_path / name))
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(["README.md", *(f"{name}.{kind}" for name in CAPTIONS for kind in ("png", "pdf"))])
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    pdf = (tmp_path / "one" / "learning_curves.pdf").read_bytes()
    assert b"FontFile2" in pdf
    assert b"CreationDate" not in pdf


def test_many_stages_get_rows_of_panels_on_the_same_axes_and_each_is_named_once() -> None:
    stages = [f"stage_{number}" for number in range(20)]
    columns = {"step": np.arange(3.0), "language_loss": np.ones(3), "diffusion_loss": np.ones(3)}
    figure = figures.learning_curves({stage: columns | {"alignment_loss": np.full(3, np.nan)} for stage in stages})
    assert len(figure.axes) == 6  # three rows: no more stages in a row than there are colours
    assert len({axis.get_ylim() for axis in figure.axes[::2]}) == 1
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    named = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert [name for row in named for name in row] == [stage.replace("_", " ") for stage in stages]
    for axis, names in zip(figure.axes[1::2], named, strict=True):
        assert len({line.get_color() for line in axis.get_lines()}) == len(names)
    figures.plt.close(figure)


def test_a_figure_without_data_is_not_drawn_and_the_index_says_why(made: Path, tmp_path: Path) -> None:
    nothing = {"losses": [], "drawings": [], "stories": None, "answers": [made / "sft_vqa.jsonl"], "attention": None}
    figures.main(given(made, tmp_path / "some", **nothing, trained=[]))
    drawn = {file.name for file in (tmp_path / "some").iterdir()}
    assert drawn == {"README.md", "figure5_in_context.png", "figure5_in_context.pdf"}
    index = (tmp_path / "some" / "README.md").read_text()
    assert "| learning_curves | not drawn: no stage was trained |" in index
    assert "| figure4_questions | not drawn: no run of model comprehension_only on benchmark vqa |" in index
    assert (
        "| figure8_subject | not drawn: no model that was trained on contexts ran the benchmark in_context |" in index
    )
    assert "| [figure5_in_context](figure5_in_context.png) | Figure 5 of the paper:" in index


def test_the_grid_shows_each_kind_of_scene_with_a_held_out_one() -> None:
    scenes = [(kind, held_out) for kind in ("single", "pair") for held_out in (False, False, False, True, True)]
    items = [
        DrawItem(str(number), "", "", SceneRecord({}, kind, held_out)) for number, (kind, held_out) in enumerate(scenes)
    ]
    assert [item.id for item in pictures.first_of_each_kind(items)] == ["0", "1", "3", "5", "6", "8"]


def test_questions_are_taken_type_by_type_and_no_picture_twice() -> None:
    types = ["colour", "colour", "colour", "count", "count", "presence"]
    shown = ["a", "b", "c", "a", "d", "e"]
    items = [
        VqaItem(str(number), picture, "", ("yes",), kind, None)
        for number, (kind, picture) in enumerate(zip(types, shown, strict=True))
    ]
    assert [item.id for item in pictures.round_robin(items, 4)] == ["0", "4", "5", "1"]
    assert [item.id for item in pictures.round_robin(items, 9)] == ["0", "4", "5", "1", "2"]


def test_models_that_answer_alike_have_no_figure_of_their_differences(made: Path) -> None:
    answers = predictions.read(made / "sft_vqa.jsonl")
    other = predictions.Predictions(answers.path, answers.header | {"model": "comprehension_only"}, answers.records, {})
    with pytest.raises(pictures.NoData, match=r"both models give the same answers to all \d+ questions"):
        pictures.questions([answers, other], made)


def test_a_mosaic_keeps_every_map_where_its_number_is() -> None:
    maps = np.arange(5.0)[:, None, None] * np.ones((5, 2, 3))
    whole = pictures.mosaic(maps)
    assert whole.shape == (5, 11)  # 2 rows and 3 columns with lines between them
    assert whole[0, 0] == 0 and whole[0, 4] == 1 and whole[3, 4] == 4 and np.isnan(whole[3, 8])


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert figures.smooth(np.full(90, 2.0)) == pytest.approx(np.full(90, 2.0))
    assert figures.smooth(np.array([0.0, 1.0, 2.0])) == pytest.approx([0.5, 1.0, 1.5])


def test_losses_may_lack_one_kind_and_are_named_where_they_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,loss\n1,2\n")
    with pytest.raises(
        BenchmarkProblem, match=r"losses.csv, line 1: should have the columns step and language_loss or"
    ):
        figures.read_losses(path)
    path.write_text("step,diffusion_loss\n1,0.5\n")
    assert np.isnan(figures.read_losses(path)["language_loss"]).all()
    path.write_text("step,language_loss,diffusion_loss\n1,much,\n")
    with pytest.raises(BenchmarkProblem, match="could not convert string to float: 'much'"):
        figures.read_losses(path)


def test_a_model_that_drew_less_than_the_benchmark_is_not_shown_as_if_it_had(made: Path, tmp_path: Path) -> None:
    whole = predictions.read(made / "sft_draw.tar")
    records = list(whole.records.values())[:-1]
    predictions.write(tmp_path / "less.tar", whole.header, records, {})
    with pytest.raises(BenchmarkProblem, match="1 of 12 items have no prediction"):
        pictures.drawings([predictions.read(tmp_path / "less.tar")], made)
