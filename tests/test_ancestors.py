"""Checkpoints are loaded only on top of those that they were trained from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import test_train
from dreamllm.official import exporter
from dreamllm.train import checkpoint
from dreamllm.train.ancestors import Ancestor, Contents, check
from dreamllm.train.checkpoint import CheckpointProblem, load_model
from dreamllm.verbs import export

pytest.importorskip("peft")
LORA = {"lora": {"rank": 2, "alpha": 4.0}}
LM, READ, DREAM = "language_model", "visual_projector", "dream_queries"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return test_train.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def stages(world, tmp_path_factory) -> Path:
    """A folder with the checkpoints `whole`, trained from the foundations, and `adapters`, trained from `whole`."""
    folder = tmp_path_factory.mktemp("stages")
    settings = {"steps": 1, "learning_rate": 0.01}
    for name, options, init in (("whole", {}, []), ("adapters", LORA, [folder / "whole"])):
        experiment = test_train.experiment(**settings, **options)
        work = tmp_path_factory.mktemp(name)
        test_train.run(world, work, experiment, init=init, out=folder / name)
    return folder


def change(folder: Path, out: Path, **changes) -> Path:
    """A copy of a checkpoint with other metadata; None removes a key."""
    shutil.copytree(folder, out)
    about = json.loads((out / "checkpoint.json").read_text()) | changes
    about = {key: value for key, value in about.items() if value is not None}
    (out / "checkpoint.json").write_text(json.dumps(about))
    return out


def test_a_checkpoint_tells_which_parts_it_inherits(stages):
    about = checkpoint.read_metadata(stages / "adapters")
    assert about["ancestors"] == [{"stage": "igpt", "parts": sorted(test_train.EVERYTHING)}]
    assert about["init"] == [checkpoint.read_metadata(stages / "whole")["tensors"]]


def test_adapters_load_on_the_language_model_that_they_were_trained_on(world, stages):
    whole = load_model(world / "foundations", [stages / "whole"])[0].state_dict()
    both = load_model(world / "foundations", [stages / "whole", stages / "adapters"])[0].state_dict()
    norm = "language_model.model.norm.weight"
    assert torch.equal(both[norm], whole[norm]), "adapters leave the norms as they were"


def test_adapters_alone_are_refused_and_the_error_says_where_their_language_model_lies(world, stages, tmp_path):
    with pytest.raises(CheckpointProblem) as error:
        load_model(world / "foundations", [stages / "adapters"])
    assert "trained from the checkpoint igpt" in str(error.value) and "holds its language_model" in str(error.value)
    assert f"it lies in {stages / 'whole'}: give {stages / 'whole'} {stages / 'adapters'}" in str(error.value)
    moved = shutil.copytree(stages / "adapters", tmp_path / "moved/adapters")
    with pytest.raises(CheckpointProblem, match="not beside it either"):
        load_model(world / "foundations", [moved])


@pytest.mark.parametrize("write", [export.export, exporter.export_official])
def test_nothing_is_exported_without_the_ancestors(write, world, stages, tmp_path):
    with pytest.raises(CheckpointProblem, match="trained from the checkpoint igpt"):
        write(world / "foundations", [stages / "adapters"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_stage_is_trained_from_a_checkpoint_without_its_ancestors(world, stages, tmp_path):
    with pytest.raises(CheckpointProblem, match="trained from the checkpoint igpt"):
        test_train.run(world, tmp_path, test_train.experiment(steps=1), init=[stages / "adapters"])


def test_the_wrong_order_and_the_wrong_language_model_are_refused(world, stages, tmp_path):
    with pytest.raises(CheckpointProblem, match="which is given after it"):
        load_model(world / "foundations", [stages / "adapters", stages / "whole"])
    other = test_train.run(world, tmp_path, test_train.experiment(steps=2, learning_rate=0.01))
    with pytest.raises(CheckpointProblem, match="trained from the checkpoint igpt"):
        load_model(world / "foundations", [other, stages / "adapters"])
    with pytest.raises(CheckpointProblem, match=r"adapters: was not trained from .*out, whose language_model"):
        load_model(world / "foundations", [stages / "whole", other, stages / "adapters"])


def test_a_checkpoint_of_an_older_version_finds_its_ancestors_beside_it(world, stages, tmp_path):
    shutil.copytree(stages / "whole", tmp_path / "first")
    old = change(stages / "adapters", tmp_path / "old", ancestors=None)
    with pytest.raises(CheckpointProblem, match=f"it lies in {tmp_path / 'first'}"):
        load_model(world / "foundations", [old])
    load_model(world / "foundations", [tmp_path / "first", old])
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(CheckpointProblem, match="the checkpoint of an earlier stage"):
        load_model(world / "foundations", [old])


# ---- which combinations are a model ---------------------------------------------------------------------------------


def contents(name: str, *whole: str, adapts: tuple[str, ...] = (), after: tuple[Contents, ...] = ()) -> Contents:
    inherited = tuple(Ancestor(one.tensors, one.tensors, one.whole | one.adapted) for one in after)
    return Contents(Path(name), name, frozenset(whole), frozenset(adapts), inherited)


ALIGN_READ, ALIGN_DREAM = contents("read", READ), contents("dream", DREAM)
PRETRAIN = contents("pretrain", LM, READ, DREAM, after=(ALIGN_READ, ALIGN_DREAM))
SFT = contents("sft", LM, READ, DREAM, after=(PRETRAIN,))
ADAPTED = contents("adapted", READ, DREAM, adapts=(LM,), after=(PRETRAIN,))
AGAIN = contents("again", DREAM, adapts=(LM,), after=(PRETRAIN, ADAPTED))
HALF = contents("half", LM, DREAM, after=(ALIGN_READ, ALIGN_DREAM))
READER = contents("reader", LM, READ, after=(ALIGN_READ,))


@pytest.mark.parametrize(
    "order",
    [
        [ALIGN_READ, ALIGN_DREAM],
        [PRETRAIN],
        [SFT],
        [ALIGN_READ, PRETRAIN, SFT],
        [PRETRAIN, ADAPTED],
        [PRETRAIN, ADAPTED, AGAIN],
        [ALIGN_READ, HALF],
        [ALIGN_DREAM, ALIGN_READ, PRETRAIN, ADAPTED],
        [ADAPTED, SFT],
    ],
)
def test_a_checkpoint_whose_ancestors_are_there_or_replaced_is_accepted(order):
    check(order)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([ADAPTED], "adapted: was trained from the checkpoint pretrain .* which holds its language_model"),
        ([SFT, ADAPTED], "adapted: was trained from the checkpoint pretrain"),
        ([PRETRAIN, SFT, ADAPTED], "adapted: was not trained from sft, whose language_model"),
        ([PRETRAIN, AGAIN], "again: was trained from the checkpoint adapted"),
        ([PRETRAIN, AGAIN, ADAPTED], "again: was trained from the checkpoint adapted, which is given after it"),
        ([SFT, PRETRAIN], "sft: was trained from the checkpoint pretrain, which is given after it"),
        ([READER, HALF], "half: was trained from the checkpoint read .* holds its visual_projector"),
        ([HALF], "half: was trained from the checkpoint read .* holds its visual_projector"),
        ([PRETRAIN, contents("plain", adapts=(LM,))], "plain: was not trained from pretrain, whose language_model"),
    ],
)
def test_a_checkpoint_on_other_weights_than_its_ancestors_is_refused(order, words):
    with pytest.raises(CheckpointProblem, match=words):
        check(order)
