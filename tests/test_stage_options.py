"""Stages with a decoder, a connector or a language model of their own, in one experiment with others."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import test_train
import tiny
from dreamllm.config.experiment import Experiment
from dreamllm.train.checkpoint import CheckpointProblem, load_for_inference, read_metadata


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Foundations with a second decoder, `flow`, and a second language model, `qwen`, which has the same tokens."""
    world = test_train.write_world(tmp_path_factory.mktemp("world"))
    foundations = world / "foundations"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tiny.write_decoder(foundations / "flow", "sd3", "epsilon", 20)
        options = {key: value for key, value in tiny.llm_config().to_dict().items() if key in SHARED}
        Qwen2ForCausalLM(Qwen2Config(**options)).save_pretrained(foundations / "qwen")
    tiny.tokenizer().save_pretrained(foundations / "qwen")
    return world


SHARED = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id"),
}


def with_stages(**stages) -> Experiment:
    """An experiment of these stages of two steps, each with the changes given."""
    base = test_train.experiment().model_dump(mode="json")
    recipe = base["stages"]["igpt"] | {"steps": 2, "weight_decay": 0.0}
    return Experiment.model_validate(base | {"stages": {name: recipe | changes for name, changes in stages.items()}})


def train(world, folder, experiment: Experiment, name: str):
    """Train a stage from the checkpoints of those that it names."""
    init = [folder / one / "out" for one in experiment.stages[name].init]
    paths = {"foundations": world / "foundations", "data": [world / "data"], "init": init}
    out = folder / name / "out"
    test_train.AcceleratorState._reset_state()
    test_train.train(experiment, name, **paths, work=folder / name / "work", out=out)
    return out


READING = {"trains": ["visual_projector"], "mode": "comprehension", "loss_weights": {"language": 1, "diffusion": 0}}
DRAWING = {"trains": ["dream_queries", "condition_projector"], "mode": "creation", "mixture": {"pairs": 1}}


@pytest.mark.parametrize(
    ("own", "denoiser", "projector"),
    [
        ({"decoder": "flow"}, "SD3Transformer2DModel", "WithPooled"),
        ({"connector_layers": 2}, "UNet2DConditionModel", "Connector"),
    ],
    ids=["decoder", "connector"],
)
def test_stages_with_another_way_to_draw_start_from_one_that_only_reads(world, tmp_path, own, denoiser, projector):
    experiment = with_stages(reading=READING, drawing=DRAWING | own, both=own | {"init": ["reading", "drawing"]})
    checkpoints = [train(world, tmp_path, experiment, name) for name in ("reading", "drawing", "both")]
    assert read_metadata(checkpoints[0])["model"]["decoder"] == "sd"
    assert read_metadata(checkpoints[2])["model"].items() >= own.items()
    model, _ = load_for_inference(world / "foundations", checkpoints, torch.float32)
    assert type(model.denoiser).__name__ == denoiser and type(model.condition_projector).__name__ == projector
    assert experiment.folders_of("both") == ["llm", "clip", own.get("decoder", "sd")]


def test_a_checkpoint_of_another_decoder_is_refused(world, tmp_path):
    experiment = with_stages(drawing=DRAWING | {"decoder": "flow"})
    out = train(world, tmp_path, experiment, "drawing")
    with pytest.raises(CheckpointProblem, match="trained on another sd foundation"):
        test_train.load_model(world / "foundations", [out], read_metadata(out)["model"] | {"decoder": "sd"})


def test_a_stage_with_another_language_model_says_so(world, tmp_path):
    experiment = with_stages(reading=READING | {"language_model": "qwen"})
    out = train(world, tmp_path, experiment, "reading")
    model, _ = load_for_inference(world / "foundations", [out], torch.float32)
    assert type(model.language_model).__name__ == "Qwen2ForCausalLM"
    assert set(read_metadata(out)["foundations"]) == {"qwen", "clip", "sd"}


@pytest.mark.parametrize("value", ["../elsewhere", "a/b", "", "A"])
def test_a_checkpoint_cannot_name_a_folder_outside_the_foundations(world, tmp_path, value):
    import json

    out = train(world, tmp_path, with_stages(reading=READING), "reading")
    about = read_metadata(out)
    about["model"]["decoder"] = value
    (out / "checkpoint.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointProblem, match="is no name of a folder"):
        test_train.load_model(world / "foundations", [out])


def test_options_of_stages_have_to_fit():
    """A decoder that the queries were not trained for; a language model of other ancestors, whatever they train."""
    with pytest.raises(ValueError, match="stages.both.init: drawing was trained with decoder flow, both has sd"):
        with_stages(drawing=DRAWING | {"decoder": "flow"}, both={"init": ["drawing"]})
    content = with_stages(drawing=DRAWING | {"decoder": "flow"}).model_dump(mode="json")
    evaluation = {"model": "drawing", "benchmarks": ["draw"], "rewrite": True}
    with pytest.raises(ValueError, match="rewrite: Stable Diffusion draws rewritten prompts; drawing has another"):
        Experiment.model_validate(content | {"evaluations": [evaluation]})
    with pytest.raises(
        ValueError, match="stages.both.init: reading was trained with language_model llm, both has qwen"
    ):
        with_stages(reading=READING, both={"init": ["reading"], "language_model": "qwen"})
