"""Models compute in bfloat16 or fp32, as the configuration's key `precision` says (here on a CPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import tiny
from dreamllm.data.packing import pack
from dreamllm.model import generate, precision
from dreamllm.model.build import build_from_foundations
from dreamllm.model.sampling import PictureSampling, draw_from_states

BF16 = torch.bfloat16


def parts_in(model: torch.nn.Module, dtype: torch.dtype) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.dtype == dtype}


def batch_losses(model, processor, autocast: bool) -> torch.Tensor:
    sequences = [s for n in range(2) for s in processor.lay_out(tiny.story(n), "joint", 96)]
    inputs = processor.collate(pack(sequences, 96)).inputs()
    with torch.autocast("cpu", BF16, enabled=autocast):
        output = model(**inputs, noise=model.draw_noise(len(inputs["draw_slots"]), torch.Generator().manual_seed(0)))
    return torch.stack([output.loss, output.language_loss, output.diffusion_loss])


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cuda", {"avx2": True}, "bf16"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("cpu", {"avx512_bf16": False, "avx512_bw": True}, "fp32"),
        ("cpu", {"architecture": "arm64", "bf16": True}, "fp32"),  # not measured, so not automatic
    ],
)
def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch, device, capabilities, expected):
    monkeypatch.setattr(precision, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.resolve("auto") == expected
    assert [precision.resolve(name) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_in_fp32_every_weight_stays_bit_for_bit():
    model, _ = tiny.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    precision.for_inference(model, "cpu", torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    unet = model.unet
    precision.cast_unet(unet, torch.float32)
    assert not unet._forward_hooks and not unet._forward_pre_hooks


def test_for_inference_all_but_the_autoencoder_and_the_buffers_are_rounded():
    model, _ = tiny.build()
    frequencies = model.language_model.model.rotary_emb.inv_freq.clone()
    precision.for_inference(model, "cpu", BF16)
    assert parts_in(model, torch.float32) == {"vae"}
    assert torch.equal(model.language_model.model.rotary_emb.inv_freq, frequencies)
    assert not torch.equal(frequencies.bfloat16().float(), frequencies)  # so that the line above can fail


def test_states_and_pictures_in_bfloat16_are_close():
    models = [tiny.build() for _ in range(2)]
    precision.for_inference(models[1][0], "cpu", BF16)
    states = [generate.query_states(model, processor, [tiny.story(1)]).float() for model, processor in models]
    assert not torch.equal(*states) and (states[0] - states[1]).abs().max() < 0.05 * states[0].abs().max()
    pictures = []
    for (model, _), state in zip(models, states, strict=True):
        state = state.to(model.unet.dtype)
        with torch.no_grad():
            picture = draw_from_states(
                model, state, model.null_states(), [0], PictureSampling("DDIMScheduler", 4, 2.0)
            )[0]
        pictures.append(torch.tensor(list(picture.tobytes()), dtype=torch.float32))
    assert not torch.equal(*pictures) and (pictures[0] - pictures[1]).abs().mean() < 5  # of 255


def test_text_and_stories_are_written_in_bfloat16():
    model, processor = tiny.build()
    precision.for_inference(model, "cpu", BF16)
    document = tiny.pair(1)
    assert len(generate.write(model, processor, [document, tiny.text()], max_new_tokens=4)) == 2
    told = generate.interleave(
        model,
        processor,
        [tiny.story(1)],
        [0],
        generate.TextSampling(max_new_tokens=4),
        PictureSampling("DDIMScheduler", 2, 2.0),
    )
    assert told[0].stopped


def test_a_unet_of_a_pipeline_takes_and_gives_fp32_but_computes_in_bfloat16(tmp_path):
    tiny.foundations(tmp_path)
    unets = [UNet2DConditionModel.from_pretrained(tmp_path / "sd", subfolder="unet") for _ in range(2)]
    precision.cast_unet(unets[1], BF16)
    latents, condition = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))[0], torch.ones(1, 3, 20)
    with torch.no_grad():
        wanted = unets[0](latents, 7, encoder_hidden_states=condition, return_dict=False)[0]
        found = unets[1](latents, 7, encoder_hidden_states=condition.bfloat16(), return_dict=False)[0]
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize(
    ("trains", "in_fp32"),
    [
        (["dream_queries", "condition_projector"], {"dream_queries", "condition_projector"}),
        (["language_model", "unet"], {"language_model", "unet"}),
    ],
)
def test_in_training_what_is_frozen_is_kept_in_bfloat16_and_the_losses_are_close(trains, in_fp32):
    model, processor = tiny.build()
    wanted = batch_losses(model, processor, autocast=False)
    model.train_only(trains)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    precision.for_training(model, BF16)
    assert parts_in(model, torch.float32) == in_fp32
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in before.items())
    found = batch_losses(model, processor, autocast=True)
    assert not torch.equal(found, wanted) and torch.allclose(found, wanted, rtol=0.02)
    found[0].backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is None or (g.dtype == torch.float32 and g.isfinite().all()) for g in gradients) and any(
        g is not None and g.abs().max() > 0 for g in gradients
    )


def test_a_model_without_its_weights_is_the_same_model(tmp_path):
    """Names, shapes and dtypes: what the other processes of a training build in order to be sent the values."""
    for tied in (False, True):
        folder = tiny.foundations(tmp_path / str(tied), tiny.llm_config(tie_word_embeddings=tied))
        for name in ("llm/model.safetensors", "sd/unet/diffusion_pytorch_model.safetensors"):  # as released: in half
            halved = {key: tensor.half() for key, tensor in load_file(folder / name).items()}
            save_file(halved, folder / name, {"format": "pt"})
        parts = [folder / part for part in ("llm", "clip", "sd")]
        whole, _ = build_from_foundations(*parts, num_dream_queries=4)
        for path in folder.rglob("*.safetensors"):
            Path(path).unlink()  # no weights are read
        empty, _ = build_from_foundations(*parts, num_dream_queries=4, weights=False)
        for kind in ("named_parameters", "named_buffers"):
            wanted, found = (list(getattr(model, kind)()) for model in (whole, empty))
            assert [(n, t.shape, t.dtype) for n, t in found] == [(n, t.shape, t.dtype) for n, t in wanted]
            assert all(tensor.is_meta for _, tensor in found)
        assert empty.config.to_dict() == whole.config.to_dict()
        assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in whole.parameters()]
