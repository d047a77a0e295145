"""Losses, gradients, conditions and sampled latents are those of the golden file, to 2e-5 (see golden/make.py)."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dreamllm.data.packing import Batch
from golden import make

TOLERANCE = 2e-5
FIELDS = ("input_ids", "labels", "position_ids", "read_slots", "draw_slots", "read_pixels", "draw_pixels")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(make.FOLDER / "cases.safetensors")


def stored_batch(golden, name: str) -> Batch:
    return Batch(**{field: golden.get(f"batch.{name}.{field}") for field in FIELDS}, document_ids=[])


def difference(ours: torch.Tensor, stored: torch.Tensor) -> float:
    """The largest difference; of tensors with entries beyond 1, relative to the largest entry."""
    return ((ours - stored).abs().max() / stored.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("name", make.DOCUMENTS)
def test_documents_are_laid_out_and_packed_as_in_the_golden_file(golden, name):
    _, processor = tiny.build()
    made, stored = processor.collate(make.rows(processor, name)).inputs(), stored_batch(golden, name).inputs()
    for key in FIELDS:
        value = stored[key]
        assert (value is None) == (made[key] is None), key
        assert value is None or torch.allclose(made[key].float(), value.float(), atol=TOLERANCE), key


def test_results_are_those_of_the_golden_file(golden):
    weights = load_file(make.FOLDER / "weights.safetensors")
    found = make.results(weights, {name: stored_batch(golden, name) for name in make.DOCUMENTS})
    assert set(found) == {name for name in golden if not name.startswith("batch.")}
    differences = {name: difference(found[name], golden[name]) for name in found if found[name].numel()}
    worst = max(differences, key=differences.get)
    print(f"\ngolden: {len(differences)} tensors, largest difference {differences[worst]:.2g} ({worst})")
    assert differences[worst] <= TOLERANCE, worst
