"""The variants of benchmarks/alternatives.py compute the same attention, losses and gradients as the model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import alternatives
import miniature
import precision
import speed


@pytest.fixture(scope="module")
def model():
    return miniature.build("tiny")


def attend(function, tensors):
    """Result of an attention, and gradients of its sum with random weights."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out, *torch.autograd.grad((out * weights).sum(), leaves)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.booleans())
def test_blockwise_causal_attention_has_outputs_and_gradients_of_sdpa(lengths, whole):
    length = sum(lengths)
    generator = torch.Generator().manual_seed(length)
    tensors = [torch.randn(2, 3, length, 8, generator=generator) for _ in range(3)]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = torch.ones(length, length, dtype=torch.bool).tril() & (whole | (document[:, None] == document))
    mask = mask.expand(2, 1, -1, -1)
    wanted = attend(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), tensors)
    given_mask = None if whole else mask
    found = attend(lambda q, k, v: alternatives.BlockwiseCausalAttention.apply(q, k, v, given_mask, 8**-0.5), tensors)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def gradients(model, loss):
    """The loss and the gradients of everything that is trained."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


@pytest.mark.parametrize("workload", ["joint", "creation", "text", "mixed"])
def test_a_partial_last_layer_gives_the_same_loss_and_gradients(model, workload):
    packed, _, noise = speed.prepare(model, workload)
    calls = []
    mlp = model.language_model.base_model.layers[-1].mlp
    handle = mlp.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[:-1].numel()))
    wanted, wanted_gradients = gradients(model, model(**packed.inputs(), noise=noise).loss)
    found, found_gradients = gradients(model, alternatives.loss_with_partial_last_layer(model, packed, noise))
    handle.remove()
    assert calls[1] < calls[0] == packed.input_ids.numel()
    assert found == pytest.approx(wanted, rel=1e-6)
    for name, gradient in wanted_gradients.items():
        other = found_gradients[name]
        if gradient is None or other is None:  # of a part that the loss does not have
            assert gradient is other is None or not (other if gradient is None else gradient).any()
        else:
            torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_variants_keep_the_loss_and_restore_the_model(model):
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    packed, _, noise = speed.prepare(model, "mixed")
    with torch.no_grad():
        wanted = model(**packed.inputs(), noise=noise).loss.item()
        for inside in ("use_blockwise_causal", "fused_norms", "channels_last", "eager_unet"):
            with getattr(alternatives, inside)(model):
                assert model(**packed.inputs(), noise=noise).loss.item() == pytest.approx(wanted, rel=1e-6), inside
        assert model(**packed.inputs(), noise=noise).loss.item() == wanted
    assert all(torch.equal(before[name], parameter) for name, parameter in model.state_dict().items())
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"


def test_both_precisions_are_timed_in_one_run():
    rows = [row.strip("| ").split(" | ") for row in precision.precisions("tiny", repeats=1).splitlines()[2:]]
    assert [row[0] for row in rows] == ["tiny, training step", "tiny, picture"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:4]) and 0 < float(rows[0][4]) < 0.02


def test_the_table_has_time_and_change_of_loss_of_each_variant():
    rows = alternatives.alternatives("tiny", "mixed", repeats=1).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]
    assert len(cells) >= 6 and cells[0][0] == "tiny, mixed: ours" and cells[0][2] == "1.00"
    assert all(float(milliseconds) > 0 for _, milliseconds, _, _ in cells)
    assert all(float(moved) < 1e-5 for name, _, _, moved in cells if "bfloat16" not in name)
