"""The code that benchmarks/speed.py compares computes the same losses: the model's, the naive and the authors' code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import test_official_equality as official
from dreamllm.data.packing import Batch
from dreamllm.model import varlen

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
import gpu  # noqa: E402
import miniature  # noqa: E402
import naive  # noqa: E402
import speed  # noqa: E402
import unet_gradient  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return miniature.build("tiny")


def test_the_tiny_model_has_the_parameters_of_the_recorded_one(model):
    assert sum(parameter.numel() for parameter in model.parameters()) == 754_507


@pytest.mark.parametrize("workload", ["joint", "creation", "text", "mixed"])
def test_losses_of_the_naive_code_are_those_of_the_model(model, workload):
    packed, padded, noise = speed.prepare(model, workload)
    found, wanted = speed.check_losses(model, packed, padded, noise)
    assert found == pytest.approx(wanted, rel=speed.TOLERANCE)
    assert len(padded.input_ids) == 8 and (len(packed.input_ids) < 8) == (workload == "mixed")
    stored = model(**speed.precomputed(model, packed).inputs(), noise=noise).loss.item()
    assert stored == pytest.approx(found, rel=1e-6)


def test_a_wrong_loss_is_noticed(model, monkeypatch):
    packed, padded, noise = speed.prepare(model, "joint")
    monkeypatch.setattr(naive, "loss", lambda *_: (torch.tensor(1.0),))
    with pytest.raises(AssertionError, match="the losses differ"):
        speed.check_losses(model, packed, padded, noise)


def test_both_ways_of_decoding_give_the_tokens_of_naive_decoding(model):
    model.eval()
    prompt = 3 + torch.arange(20)[None]
    with speed.attention_set_to(model, "eager"), naive.clip_at_every_token(model):
        wanted = speed.greedy_generate(model, prompt, 6)
    assert speed.greedy_generate(model, prompt, 6) == speed.greedy_interleave(model, prompt, 6)[:6] == wanted
    model.train()


@pytest.mark.skipif(not official.FIXTURE.is_dir(), reason="the recordings of the official code are not here")
@pytest.mark.parametrize("name", ["interleaved_joint", "pair_creation", "pair_comprehension", "text_only"])
def test_losses_of_the_naive_code_are_those_recorded_of_the_authors(name):
    case, model = official.recorded(name), official.official_model()
    config = model.config
    batch = Batch(
        input_ids=case["in.input_ids"],
        labels=case["in.labels"],
        position_ids=torch.empty(0),  # of no use to the naive code
        read_slots=official.slots(case["in.input_ids"], config.im_start_token_id),
        draw_slots=official.slots(case["in.input_ids"], config.dream_start_token_id),
        read_pixels=case.get("in.images"),
        draw_pixels=case.get("in.images_dm"),
        document_ids=[],
    )
    with speed.attention_set_to(model, "eager"):
        loss, language, drawn = naive.loss(model, batch, official.noise(case))
    assert loss.item() == pytest.approx(case["out.loss"].item(), abs=official.TOLERANCE)
    assert language.item() == pytest.approx(official.meta()[name]["lm_loss"], abs=official.TOLERANCE)
    assert drawn.item() == pytest.approx(case["head.loss"].item(), abs=official.TOLERANCE)


def test_the_gpu_benchmark_builds_models_of_the_papers_sizes():
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in gpu.build("meta").named_children()}
    assert sizes["language_model"] == 6_738_481_152  # LLaMA-7B with 32008 tokens
    assert sizes["unet"] == 865_910_724 and sizes["vae"] == 83_653_863  # Stable Diffusion 2.1


def test_the_flops_for_the_mfu_are_those_that_torch_counts(model):
    packed, _, noise = speed.prepare(model, "joint")
    # the counter counts eager attention, with the masked half
    with speed.FlopCounterMode(display=False) as counter, speed.attention_set_to(model, "eager"):
        model(**packed.inputs(), noise=noise).loss.backward()
    model.zero_grad()
    operations = gpu.model_flops(model, packed) + miniature.attention_flops(model, packed)
    assert operations == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_the_gpu_benchmark_measures_all_its_variants_of_a_step():
    """On a small model on a CPU, without compiling; that the losses agree is asserted there."""
    accelerator, tiny = Accelerator(cpu=True), miniature.build("tiny")
    found = list(gpu.training_steps(tiny, accelerator, [1], [1, 4], compiled=False, steps=1))
    names = [line.split(": ")[0] for line in found[::2]]
    assert names[:3] == [
        "all checkpointed", "+ gradient of the diffusion loss in the forward pass", "+ attention by lengths (varlen)"
    ]  # fmt: skip
    assert names[3:6] == ["+ precompute", "+ every 4th layer checkpointed", "+ no layer checkpointed"]
    assert len(found) == 2 * len(names) and names[6:] in ([], ["+ AdamW in 8 bits"])
    for line in found:
        assert re.search(r"1 rows of [14] document\(s\): \d+ ms, [\d,]+ tokens/s, .* TFLOP, MFU unknown$", line), line


def test_a_variant_that_computes_something_else_is_noticed(monkeypatch):
    tiny = miniature.build("tiny")
    attend = varlen.one_by_one
    monkeypatch.setattr(varlen, "one_by_one", lambda *inputs: 0 * attend(*inputs))
    with pytest.raises(AssertionError, match=r"attention by lengths \(varlen\): loss and norm of the gradient are"):
        list(gpu.training_steps(tiny, Accelerator(cpu=True), [1], [4], compiled=False, steps=1))


def test_the_unets_part_of_a_checkpointed_step_runs_it_once_instead_of_three_times():
    table = unet_gradient.measure("tiny", 8, 1)
    found = [line.split(" | ")[1] for line in table.splitlines()[2:]]
    assert found == ["1", "3", "1"]


def test_the_gpu_benchmark_samples_with_diffusers_alone_too():
    line = gpu.sampling(miniature.build("tiny"), 1)
    assert re.fullmatch(r"pictures per second: ours [\d.]+, plain diffusers [\d.]+", line)


def test_speed_py_prints_all_tables():
    command = [sys.executable, FOLDER / "speed.py", "--sizes", "tiny", "--repeats", "1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("tiny, joint | 196", "all off (naive)", "**floor**", "ms per token"):
        assert words in output
