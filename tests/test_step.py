"""The training step's ways to save memory and time compute what the plain step computes, with the work they claim."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import MistralConfig

import ranks
import tiny
from dreamllm.config.machine import GradientCheckpointing, Machine, checkpointed
from dreamllm.config.stages import Stage
from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import Batch, document_boundaries, pack, positions_of_targets
from dreamllm.model import varlen
from dreamllm.model.packed import with_gradient
from dreamllm.train import adamw, distributed

DOCUMENTS = [(tiny.story(1), "joint"), (tiny.pair(2), "creation"), (tiny.conversation(4), "joint")]


def example(**config) -> tuple[torch.nn.Module, Batch]:
    """A model in training mode, with these values of its configuration, and a batch of five documents in rows."""
    model, processor = tiny.build(condition_width=24)
    for key, value in config.items():
        setattr(model.config, key, value)
    laid = [sequence for document, mode in DOCUMENTS for sequence in processor.lay_out(document, mode, 128)]
    return model.train(), processor.collate(pack(laid, 128), align=bool(model.config.alignment_loss_weight))


def gradients(model, batch, autocast: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch with fixed noise, and the gradients of what is trained."""
    model.zero_grad(set_to_none=True)
    noise = model.draw_noise(len(batch.draw_slots), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch.inputs(), noise=noise).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, wanted, tolerance: float) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= tolerance * gradient.norm(), name


def count_runs(model) -> list[int]:
    """A list that grows by the number of pictures whenever the first block of the UNet's second half runs."""
    runs: list[int] = []
    block = model.unet.up_blocks[0].resnets[0].norm1
    block.register_forward_hook(lambda _, inputs, output: runs.append(len(inputs[0])))
    return runs


# ---- the gradient of the diffusion loss in the forward pass ----------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"condition_dropout": 0.5, "noise_draws": 2, "snr_gamma": 5.0},
        {"alignment_loss_weight": 1.0, "condition_dropout": 0.5},
    ],
    ids=["plain", "dropout", "alignment"],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_gradient_made_in_the_forward_pass_is_that_of_the_backward_pass(config, size):
    model, batch = example(**config)
    wanted = gradients(model, batch)
    model.pictures_at_a_time = size
    found = gradients(model, batch)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert_close(found, wanted, 2e-6)


def test_in_bfloat16_it_differs_by_rounding():
    model, batch = example()
    wanted = gradients(model, batch, autocast=True)
    model.pictures_at_a_time = 2
    assert_close(gradients(model, batch, autocast=True), wanted, 0.02)


@pytest.mark.parametrize(
    ("trained", "chosen", "runs"),
    [([], True, 1), (["unet"], True, 3), ([], GradientCheckpointing(unet=1), 2)],
    ids=["frozen", "trained", "frozen and checkpointed"],
)
def test_a_checkpointed_step_runs_a_frozen_unet_once_and_a_trained_one_three_times(trained, chosen, runs):
    model, batch = example()
    model.train_only(["language_model", "dream_queries", "condition_projector", *trained])
    wanted = gradients(model, batch)
    machine = Machine(gradient_checkpointing=chosen, pictures_at_a_time=2)
    distributed.prepare_model(model, machine, Accelerator(cpu=True))
    counted = count_runs(model)
    assert_close(gradients(model, batch), wanted, 2e-5)
    assert sum(counted) == runs * len(batch.draw_slots)


def test_without_gradients_the_function_is_called_in_parts_and_nothing_is_stored():
    parts = []
    square = lambda x, y: parts.append(torch.is_grad_enabled()) or (x * y).sum(dim=1)  # noqa: E731
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(with_gradient(square, 2, x, y), (x * y).sum(dim=1)) and len(parts) == 3
    with torch.no_grad():
        assert not with_gradient(square, 2, x.clone().requires_grad_(), y).requires_grad
    assert parts[3:] == [False] * 3


def test_its_gradient_is_scaled_once_for_each_entry():
    x, y, weights = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3), torch.rand(5)
    (10 * weights * with_gradient(lambda a, b: (a * a * b).sum(dim=1), 2, x, y)).sum().backward()
    torch.testing.assert_close(x.grad, 10 * weights[:, None] * 2 * x.detach() * y)


# ---- activation checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "pictures", "trains_unet", "expected"),
    [
        (False, None, False, (None, None)),
        (True, None, False, (1, 1)),
        (True, 4, False, (1, None)),
        (True, 4, True, (1, 1)),
        ({"language_model": 2}, 4, True, (2, None)),
        ({"language_model": 2, "unet": "none"}, None, False, (2, None)),
        ({"unet": 3}, 4, False, (None, 3)),
    ],
)
def test_checkpointing_of_language_model_and_unet_is_set_apart(chosen, pictures, trains_unet, expected):
    machine = Machine.model_validate({"gradient_checkpointing": chosen, "pictures_at_a_time": pictures})
    assert checkpointed(machine, trains_unet=trains_unet) == expected


@pytest.mark.parametrize("wrong", [{"language_model": 0}, {"unet": "all"}, {"vae": 1}, 2])
def test_other_values_are_refused(wrong):
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        Machine.model_validate({"gradient_checkpointing": wrong})


@pytest.mark.parametrize(("every", "recomputed"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_every_nth_layer_is_recomputed(every, recomputed):
    model, processor = tiny.build(tiny.llm_config(num_hidden_layers=4))
    batch = processor.collate(pack(processor.lay_out(tiny.story(1), "joint", 128), 128))
    model.train()
    wanted = gradients(model, batch)
    machine = Machine(gradient_checkpointing=GradientCheckpointing(language_model=every, unet=2))
    distributed.prepare_model(model, machine, Accelerator(cpu=True))
    runs: list[int] = []
    for layer in distributed.decoder_layers(model):
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    assert_close(gradients(model, batch), wanted, 1e-5)
    assert len(runs) == 4 + recomputed


# ---- attention by the lengths of documents ---------------------------------------------------------------------------


def packed_example(**changes) -> tuple[torch.nn.Module, Batch]:
    """A model in training mode, with dropped conditions, and rows of several documents."""
    model, processor = tiny.build(tiny.llm_config(**changes))
    model.config.condition_dropout = 0.5
    documents = [*DOCUMENTS, (tiny.text(5), "joint"), (tiny.pair(3), "comprehension")]
    laid = [sequence for document, mode in documents for sequence in processor.lay_out(document, mode, 200)]
    batch = processor.collate(pack(laid, 200))
    assert len(batch.input_ids) > 1 and max(map(len, batch.document_ids)) > 1
    return model.train(), batch


@pytest.mark.parametrize("kernel", ["a CPU's", "a GPU's"])
def test_attention_by_lengths_is_sdpa_with_a_mask(monkeypatch, kernel):
    model, batch = packed_example()
    wanted = gradients(model, batch)
    if kernel == "a GPU's":  # what it is called with is tested: the kernel itself runs on a GPU only
        one_by_one = varlen.one_by_one

        def varlen_attn(q, k, v, ends, other, longest, *_, scale, window_size, enable_gqa):
            assert ends is other and ends.dtype == torch.int32 and longest >= ends.diff().max()
            assert window_size == (-1, 0) and enable_gqa and q.shape[1] == 2 * k.shape[1]
            return one_by_one(q, k, v, ends, longest, scale)

        monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
        monkeypatch.setattr(varlen, "one_by_one", varlen.flash)
    distributed.prepare_model(model, Machine(attention="varlen", gradient_checkpointing=True), Accelerator(cpu=True))
    assert_close(gradients(model, batch), wanted, 1e-5)
    without = dataclasses.replace(batch, cu_seq_lens=None, target_positions=None)
    assert_close(gradients(model, without), wanted, 1e-5)
    model.language_model.set_attn_implementation("eager")
    assert_close(gradients(model, batch), wanted, 1e-5)


def test_it_differs_in_bfloat16_by_rounding():
    model, batch = packed_example()
    wanted = gradients(model, batch, autocast=True)
    model.language_model.set_attn_implementation("varlen")
    assert_close(gradients(model, batch, autocast=True), wanted, 0.03)


def test_flex_attention_with_a_block_mask_computes_the_same():
    """Its forward pass, as torch computes it without compiling."""
    ends = torch.tensor([0, 5, 6, 30, 64, 70, 128], dtype=torch.int32)  # two rows of 64
    query, key, value = (torch.randn(2, heads, 64, 16) for heads in (4, 2, 2))
    found, _ = varlen.attention_forward(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, cu_seq_lens_q=ends, max_length_q=64
    )
    document = torch.bucketize(torch.arange(128), ends, right=True).view(2, 64)

    def mask(b, h, q, k):
        return (q >= k) & (document[b, q] == document[b, k])

    block_mask = create_block_mask(mask, 2, None, 64, 64, device="cpu", BLOCK_SIZE=64)
    wanted = flex_attention(query, key, value, block_mask=block_mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "torchs", "package", "expected"),
    [
        ("cpu", torch.float32, True, False, "varlen"),
        ("cuda", torch.bfloat16, True, True, "varlen"),
        ("cuda", torch.bfloat16, False, True, "flash_attention_2"),
        ("cuda", torch.bfloat16, False, False, "flex_attention"),
        ("cuda", torch.float32, True, True, "flex_attention"),
    ],
)
def test_varlen_is_the_best_that_is_there(monkeypatch, device, dtype, torchs, package, expected):
    monkeypatch.setattr(varlen, "flash_works", lambda device, dtype: torchs)
    monkeypatch.setattr(varlen, "is_flash_attn_2_available", lambda: package)
    assert varlen.implementation(torch.device(device), dtype) == expected


def test_a_kernel_that_is_not_there_or_computes_something_else_is_not_used(monkeypatch):
    cpu, one_by_one = torch.device("cpu"), varlen.one_by_one
    assert not varlen.flash_works(cpu, torch.bfloat16), "torch has no such kernel for a CPU"
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal: query)  # as in torch 2.10
    assert not varlen.flash_works(cpu, torch.bfloat16)
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, ends, *_, **__: one_by_one(q, k, v, ends, 0, None))
    assert varlen.flash_works(cpu, torch.bfloat16)
    mixed = torch.tensor([0, 48], dtype=torch.int32)
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, ends, *_, **__: one_by_one(q, k, v, mixed, 0, None))
    assert not varlen.flash_works(cpu, torch.bfloat16)


def test_attention_that_lengths_cannot_express_is_an_error():
    model, processor = tiny.build(MistralConfig(**tiny.llm_config().to_dict() | {"sliding_window": 8}))
    model.language_model.set_attn_implementation("varlen")
    batch = processor.collate(pack(processor.lay_out(tiny.text(), "joint", 64), 64))
    with pytest.raises(ValueError, match="'varlen' has no sliding_window .*set machine.attention to sdpa"):
        model(**batch.inputs())
    with pytest.raises(ValueError, match="'varlen' needs cu_seq_lens_q"):
        llama = tiny.build()[0].language_model
        llama.set_attn_implementation("varlen")
        llama(batch.input_ids)


def test_what_collate_computes_is_what_the_model_would():
    _, batch = packed_example()
    assert torch.equal(batch.cu_seq_lens, document_boundaries(batch.position_ids))
    lengths = batch.cu_seq_lens.diff().tolist()
    assert sum(lengths) == batch.input_ids.numel() and len(lengths) >= sum(map(len, batch.document_ids))
    assert torch.equal(batch.target_positions, positions_of_targets(batch.labels))
    mask = batch.labels[:, 1:] != IGNORE
    assert torch.equal(batch.labels.flatten()[batch.target_positions + 1], batch.labels[:, 1:][mask])
    hidden = torch.randn(*batch.labels.shape, 3)
    assert torch.equal(hidden.flatten(0, 1)[batch.target_positions], hidden[:, :-1][mask])


# ---- the optimiser ---------------------------------------------------------------------------------------------------


def some_stage() -> Stage:
    fields = {"trains": ["language_model"], "mode": "joint", "mixture": {"pairs": 1}, "steps": 10}
    return Stage(**fields, rows_per_batch=8, context=16, learning_rate=1e-3, weight_decay=0.1)


def test_the_optimiser_is_fused_adamw_unless_another_is_chosen():
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": 0.1}]
    built = adamw.build(groups, some_stage(), Machine())
    assert type(built) is torch.optim.AdamW and built.defaults["fused"] and built.defaults["lr"] == 1e-3


def test_adamw_in_8_bits_says_what_it_needs(monkeypatch):
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))]}]
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(distributed.MachineProblem, match="adamw_8bit needs `pip install bitsandbytes`"):
        adamw.build(groups, some_stage(), Machine(optimizer="adamw_8bit"))
    with pytest.raises(distributed.MachineProblem, match="cannot train sharded parameters; set sharding to none"):
        adamw.build(groups, some_stage(), Machine(optimizer="adamw_8bit", sharding="full_shard"))


def test_adamw_in_8_bits_steps_as_adamw_does_and_its_state_can_be_saved():
    pytest.importorskip("bitsandbytes")
    runs = {}
    for name in ("adamw", "adamw_8bit", "resumed"):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(8))]
        target = [torch.randn_like(weight) for weight in weights]
        machine = Machine(optimizer="adamw" if name == "adamw" else "adamw_8bit")
        optimizer = adamw.build([{"params": weights, "weight_decay": 0.1}], some_stage(), machine)
        for step in range(20):
            if name == "resumed" and step == 10:  # as train/resume.py does
                states = [dict(optimizer.state[weight]) for weight in weights]
                optimizer = adamw.build([{"params": weights, "weight_decay": 0.1}], some_stage(), machine)
                for weight, state in zip(weights, states, strict=True):
                    optimizer.state[weight].update({key: value.clone() for key, value in state.items()})
            sum((weight - wanted).square().sum() for weight, wanted in zip(weights, target, strict=True)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        runs[name] = torch.cat([weight.detach().flatten() for weight in weights])
        state = optimizer.state[weights[0]]
        assert all(isinstance(value, torch.Tensor) for value in state.values()) and int(state["step"]) == 20
        if name != "adamw":
            assert state["state1"].dtype == torch.uint8
    assert torch.equal(runs["resumed"], runs["adamw_8bit"])
    assert not torch.equal(runs["adamw"], runs["adamw_8bit"])
    torch.testing.assert_close(runs["adamw_8bit"], runs["adamw"], rtol=0, atol=5e-3)  # 20 steps of 1e-3


# ---- several processes, copies to a GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize(("sharding", "times"), [("shard_grad_op", 1), ("full_shard", 3)])
def test_sharded_gradients_are_exchanged_after_the_last_micro_batch(tmp_path, sharding, times):
    """Except with full_shard, where they would not be sharded before; either way their sum is the same."""

    model, batch = example()  # in one process: only the first of several writes its foundations
    machine = Machine(sharding=sharding, rows_at_a_time=1)

    def loss_of(prepared) -> torch.Tensor:
        return prepared(**batch.inputs(), noise=model.draw_noise(len(batch.draw_slots), seeded(0))).loss

    def child(rank: int) -> None:
        accelerator = Accelerator(cpu=True)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        wanted = torch.autograd.grad(loss_of(model), [model.get_parameter(name) for name in names])
        prepared = distributed.prepare_model(model, machine, accelerator)
        exchanged: list[int] = []
        reduce = _fsdp_param_group.foreach_reduce
        _fsdp_param_group.foreach_reduce = lambda *args, **options: exchanged.append(1) or reduce(*args, **options)
        for part in range(3):
            with distributed.no_sync_unless_last(prepared, machine, last=part == 2):
                loss_of(prepared).backward()
        assert len(exchanged) == times * (1 + model.config.text_config.num_hidden_layers)  # groups of parameters
        for name, gradient in zip(names, wanted, strict=True):
            found = distributed.full_tensor(model.get_parameter(name).grad)
            torch.testing.assert_close(found, 3 * gradient, rtol=1e-5, atol=1e-6, msg=name)

    assert ranks.run(2, child, tmp_path) == ["", ""]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_keeps_everything_on_its_way_to_a_device(monkeypatch):
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    _, batch = example()
    tensors = {name for name, value in batch.inputs().items() if value is not None}
    moved = batch.pin_memory().to("meta")
    assert len(pinned) == len(tensors) and moved.document_ids == batch.document_ids
    assert {name for name, value in moved.inputs().items() if value is not None and value.is_meta} == tensors
