"""The alignment loss: its inputs and targets, and which parameters get gradients from it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import test_scale
import test_train
import tiny
from dreamllm.data.packing import Batch
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.model.alignment import alignment_targets, grid_shape
from dreamllm.results.figures import learning_curves, read_losses
from dreamllm.train import trainer
from dreamllm.train.checkpoint import load_model

WIDTH = 24  # of tiny CLIP's features, and here of the conditions
OPTIONS = {"num_dream_queries": 4, "template": "plain", "seed": 0}
ONLY = {"language": 0.0, "diffusion": 0.0, "alignment": 1.0}
CLIP_SPACE = {"mode": "creation", "mixture": {"pairs": 1.0}, "trains": ["dream_queries", "condition_projector"]}
CLIP_SPACE |= {"loss_weights": ONLY}
DECODER = {"mode": "creation", "mixture": {"pairs": 1.0}, "trains": ["unet"]}
DECODER |= {"loss_weights": {"language": 0.0, "diffusion": 1.0}}


# ---- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "shape"), [(64, (8, 8)), (32, (4, 8)), (128, (8, 16)), (7, (1, 7)), (1, (1, 1))])
def test_a_grid_is_as_nearly_a_square_as_can_be(number, shape):
    assert grid_shape(number) == shape


@given(st.integers(1, 400))
def test_a_grid_has_a_place_for_each_query(number):
    rows, columns = grid_shape(number)
    assert rows * columns == number and rows <= columns


def test_patches_are_averaged_where_they_lie_and_normalised():
    patches = torch.tensor([[1.0, 3.0], [3.0, 5.0], [9.0, 1.0], [5.0, 3.0]])[None]  # 2 x 2 patches of two numbers
    assert alignment_targets(patches, 1) == pytest.approx(torch.tensor([[[1.0, -1.0]]]), abs=1e-4)  # of 4.5 and 3
    halves = torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]])  # upper: 2 and 4; lower: 7 and 2
    columns = alignment_targets(patches[:, [0, 2, 1, 3]], 2)  # the same patches, turned: now left and right
    assert columns == pytest.approx(halves, abs=1e-4)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 99))
def test_conditions_of_zero_have_a_loss_of_one_whatever_clip_it_is(side, queries, seed):
    generator = torch.Generator().manual_seed(seed)
    features = 30 * torch.randn(2, side**2, 16, generator=generator) + 7
    targets = alignment_targets(features, queries)
    assert targets.shape == (2, queries, 16)
    assert targets.square().mean().item() == pytest.approx(1, abs=1e-3)


# ---- the loss ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny.build(condition_width=WIDTH)


def drawn(processor, align: bool = True) -> Batch:
    """Two pairs and a story: four pictures to draw, of which the story's two are also read."""
    sequences = [s for n in range(2) for s in processor.lay_out(tiny.pair(n), "creation", 96)]
    return processor.collate([sequences, processor.lay_out(tiny.story(1), "joint", 96)], align=align)


def set_weights(model, language: float, diffusion: float, alignment: float):
    model.config.language_loss_weight, model.config.diffusion_loss_weight = language, diffusion
    model.config.alignment_loss_weight = alignment
    return model


def forward(model, batch: Batch, **options):
    return model(**batch.inputs(), generator=torch.Generator().manual_seed(0), **options)


def test_the_loss_is_the_mean_squared_error_of_projected_states_and_clip(model_and_processor):
    model, processor = model_and_processor
    batch = drawn(processor)
    output = forward(set_weights(model, 1, 10, 2), batch)
    total = 0.0
    for (row, first), pixels in zip(batch.draw_slots.tolist(), batch.target_pixels, strict=True):
        conditions = output.last_hidden_state[row, first : first + 4] @ model.condition_projector.weight.T  # (4, 24)
        hidden = model.vision_model(pixels[None], output_hidden_states=True).hidden_states[-2][0, 1:]  # (16, 24)
        for query, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
            patches = [hidden[4 * (top + y) + left + x] for y in (0, 1) for x in (0, 1)]
            target = sum(patches) / 4
            target = (target - target.mean()) / target.std(correction=0)
            total += (conditions[query] - target).square().mean().item() / 4
    assert output.alignment_loss.item() == pytest.approx(total / 4, rel=1e-4)
    parts = output.language_loss + 10 * output.diffusion_loss + 2 * output.alignment_loss
    assert output.loss.item() == pytest.approx(parts.item())


def test_with_weight_zero_all_is_as_without_the_loss(model_and_processor):
    model, processor = model_and_processor
    plain = forward(set_weights(model, 1, 10, 0), drawn(processor, align=False))
    found = forward(model, drawn(processor))
    assert drawn(processor, align=False).target_pixels is None and found.alignment_loss is None
    assert torch.equal(plain.loss, found.loss)
    beside = forward(set_weights(model, 1, 10, 1), drawn(processor))
    assert torch.equal(plain.language_loss, beside.language_loss)
    assert torch.equal(plain.diffusion_loss, beside.diffusion_loss)


def test_parts_of_a_batch_add_up_and_a_part_without_pictures_is_zero(model_and_processor):
    model, processor = model_and_processor
    set_weights(model, 0, 0, 1)
    whole = forward(model, drawn(processor)).alignment_loss.item()
    rows = [processor.lay_out(tiny.pair(0), "creation", 96) + processor.lay_out(tiny.pair(1), "creation", 96)]
    rows += [processor.lay_out(tiny.story(1), "joint", 96), processor.lay_out(tiny.text(), "joint", 96)]
    parts = [forward(model, processor.collate([row], align=True), num_pictures=4).alignment_loss for row in rows]
    assert sum(part.item() for part in parts) == pytest.approx(whole, rel=1e-5)
    assert parts[2].item() == 0 and parts[2].requires_grad


def test_a_dropped_condition_is_aligned_all_the_same(model_and_processor):
    model, processor = model_and_processor
    batch = drawn(processor)
    set_weights(model, 0, 1, 1)
    noise = model.draw_noise(4, torch.Generator().manual_seed(0))
    kept = model(**batch.inputs(), noise=noise)
    every = torch.ones(4, dtype=torch.bool)
    dropped = model(**batch.inputs(), noise=type(noise)(**{**vars(noise), "dropped": every}))
    assert torch.equal(kept.alignment_loss, dropped.alignment_loss)
    assert kept.diffusion_loss != dropped.diffusion_loss


def test_a_batch_without_target_pixels_is_refused(model_and_processor):
    model, processor = model_and_processor
    with pytest.raises(ValueError, match="collate the batch with align=True"):
        forward(set_weights(model, 1, 1, 1), drawn(processor, align=False))


# ---- stages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return test_train.write_world(tmp_path_factory.mktemp("world"), condition_width=WIDTH)


@pytest.mark.parametrize("settings", [CLIP_SPACE, DECODER], ids=["clip space", "decoder"])
def test_gradients_reach_exactly_what_the_arm_trains(world, settings):
    model, processor = load_model(world / "foundations", [], OPTIONS)
    trainer.apply_stage(model, test_train.experiment(**settings).stages["igpt"])
    forward(model, drawn(processor)).loss.backward()
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(norms) == {name for name, _ in model.named_parameters() if name.split(".")[0] in settings["trains"]}
    assert all(norm > 0 for norm in norms.values()), norms
    assert model.unet.training == ("unet" in settings["trains"]) and not model.language_model.training


def test_the_alignment_loss_alone_reaches_neither_head_nor_unet(world):
    model, processor = load_model(world / "foundations", [], OPTIONS)
    model.train_only([*test_train.EVERYTHING, "unet"])
    pairs = [s for n in range(2) for s in processor.lay_out(tiny.pair(n), "creation", 96)]
    forward(set_weights(model, 0, 0, 1), processor.collate([pairs], align=True)).loss.backward()
    reached = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    parts = {name.split(".")[0] for name in reached}
    assert parts == {"language_model", "dream_queries", "condition_projector"}
    assert "language_model.lm_head.weight" not in reached


def test_the_arm_in_clips_space_runs_from_alignment_to_a_unet_of_its_own(world, tmp_path):
    """Figure 1: conditions are regressed first; then the UNet alone learns to draw from them, as Emu's does."""
    first = test_train.run(world, tmp_path / "1", test_train.experiment(**CLIP_SPACE, steps=12, learning_rate=0.01))
    second = test_train.run(world, tmp_path / "2", test_train.experiment(**DECODER, steps=2), init=[first])
    rows = test_train.losses(first)
    assert all(row["loss"] == row["alignment_loss"] and math.isnan(row["diffusion_loss"]) for row in rows)
    assert rows[-1]["alignment_loss"] < rows[0]["alignment_loss"]
    about = json.loads((first / "checkpoint.json").read_text())
    assert about["totals"]["final"]["alignment_loss"] < 2 and about["config"]["loss_weights"]["alignment"] == 1
    assert "alignment_loss" not in test_train.losses(second)[0]
    tensors = load_file(second / "trained.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"unet"}
    model, _ = load_model(world / "foundations", [first, second])
    fresh, _ = load_model(world / "foundations", [first])
    assert torch.equal(model.condition_projector.weight, fresh.condition_projector.weight)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert any(not torch.equal(fresh.state_dict()[name], tensor) for name, tensor in tensors.items())


def test_precomputed_pictures_give_the_same_losses(world, tmp_path):
    settings = {"loss_weights": {"language": 1.0, "diffusion": 10.0, "alignment": 1.0}, "steps": 3}
    plain = test_train.losses(test_train.run(world, tmp_path / "plain", test_train.experiment(**settings)))
    stored = test_train.experiment(**settings, precompute=True)
    found = test_train.losses(test_train.run(world, tmp_path / "stored", stored, encoded_pictures=tmp_path / "store"))
    for ours, theirs in zip(found, plain, strict=True):
        assert ours == pytest.approx(theirs, abs=1.1e-6, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("settings", "sharding"),
    [({"loss_weights": ONLY | {"language": 1.0}}, "none"), (DECODER, "full_shard")],
    ids=["joint", "decoder"],
)
def test_two_processes_train_as_one_does(world, tmp_path, settings, sharding):
    """Text beside pairs: some parts of a batch draw nothing."""
    settings = {**settings, "mixture": {"text": 2.0, "pairs": 1.0}, "context": 64, "steps": 3}
    machine = {"sharding": sharding, "rows_at_a_time": 1}
    assert test_scale.train(world, tmp_path / "alone", test_scale.experiment(**settings)) == [""]
    assert test_scale.train(world, tmp_path / "two", test_scale.experiment(machine, **settings), 2) == ["", ""]
    assert any(row["pictures_drawn"] < 4 for row in test_train.losses(tmp_path / "alone" / "out"))
    test_scale.assert_same_training(tmp_path / "two", tmp_path / "alone")


def test_features_and_conditions_of_different_lengths_are_refused(tmp_path):
    world = test_train.write_world(tmp_path)
    with pytest.raises(ValueError, match=r"alignment: the eye's features have size 24, the decoder's conditions 20"):
        test_train.run(world, tmp_path, test_train.experiment(loss_weights=ONLY))


# ---- learning curves -----------------------------------------------------------------------------------------------


def test_learning_curves_have_a_third_panel_for_stages_with_the_loss_alone(tmp_path):
    (tmp_path / "plain.csv").write_text("step,language_loss,diffusion_loss\n1,0.5,0.5\n2,0.4,0.4\n")
    (tmp_path / "arm.csv").write_text("step,alignment_loss\n1,0.9\n2,0.8\n")
    losses = {name: read_losses(tmp_path / f"{name}.csv") for name in ("plain", "arm")}
    assert [axis.get_title() for axis in learning_curves(losses).axes] == [
        "language loss",
        "diffusion loss",
        "alignment loss",
    ]
    assert len(learning_curves({"plain": losses["plain"]}).axes) == 2
    (tmp_path / "none.csv").write_text("step,other\n1,2\n")
    with pytest.raises(BenchmarkProblem):
        read_losses(tmp_path / "none.csv")
