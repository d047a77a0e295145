"""Each eye gives its own hidden states to the model, which is built, saved, trained and cached with it as with CLIP."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitImageProcessor,
    BitsAndBytesConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

import tiny
from dreamllm.data.packing import pack
from dreamllm.evaluate import few_shot, networks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.model import generate
from dreamllm.model.build import build_from_foundations
from dreamllm.model.eyes import patch_features
from dreamllm.model.weights import FoundationProblem
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.exporter import export_official
from dreamllm.train import checkpoint, trainer
from dreamllm.verbs import import_official
from test_train import experiment, losses, run, write_world

TOWER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SQUARE = {"height": 16, "width": 16}
SIGLIP = SiglipConfig(
    text_config={**TOWER, "intermediate_size": 48, "vocab_size": 100, "max_position_embeddings": 16},
    vision_config={**TOWER, "intermediate_size": 48, "image_size": 16, "patch_size": 4},
)
DINO = {**TOWER, "mlp_ratio": 2, "patch_size": 4}
CROPPED = {"size": {"shortest_edge": 20}, "crop_size": SQUARE}
# The model, the tokens before its patches, and its image processor. DINOv2's was trained on larger pictures.
EYES = {
    "siglip": (lambda: SiglipModel(SIGLIP), 0, SiglipImageProcessor(size=SQUARE)),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**DINO, image_size=28)), 1, BitImageProcessor(**CROPPED)),
    "registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, image_size=16, num_register_tokens=3)),
        4,
        BitImageProcessor(**CROPPED),
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Data, and foundations whose eye has as many features as the UNet's conditions."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=EYES)
def eye(request, tmp_path_factory) -> tuple[Path, int]:
    """Foundations with one of the eyes, and the number of tokens before its patches."""
    make, before, image_processor = EYES[request.param]
    folder = tiny.foundations(tmp_path_factory.mktemp(request.param), condition_width=24)
    write_eye(folder / "clip", make, image_processor)
    return folder, before


def write_eye(folder: Path, make, image_processor) -> None:
    shutil.rmtree(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make().save_pretrained(folder)
    image_processor.save_pretrained(folder)


def build(folder: Path, **options):
    options = {"num_dream_queries": 4, "template": "plain"} | options
    return build_from_foundations(*(folder / name for name in checkpoint.foundation_folders({})), **options)


def test_features_are_a_hidden_state_without_the_tokens_before_the_patches(eye):
    folder, before = eye
    model, processor = build(folder)
    pixels = processor.read_pixels([tiny.picture(1), tiny.picture(2)])
    hidden_states = model.vision_model(pixels, output_hidden_states=True).hidden_states
    for layer in (-2, -1, 0):
        features = patch_features(model.vision_model, pixels, layer)
        assert features.shape == (2, 16, 24) and model.config.num_patches == processor.num_patches == 16
        assert torch.allclose(features, hidden_states[layer][:, before:], atol=1e-6)


def test_pictures_are_prepared_as_the_eyes_folder_says(eye):
    folder, _ = eye
    _, processor = build(folder)
    picture = tiny.picture(3, side=30)
    own = AutoImageProcessor.from_pretrained(folder / "clip", backend="pil")
    assert torch.equal(processor.read_pixels([picture]), own(images=picture, return_tensors="pt")["pixel_values"])
    assert not torch.allclose(processor.read_pixels([picture]), tiny.build()[1].read_pixels([picture]), atol=0.1)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_model_reads_draws_and_is_saved_with_the_eye(eye, kind, tmp_path):
    model, processor = build(eye[0], visual_projector_type=kind)
    question = tiny.conversation(1)
    written = generate.write(model, processor, [question, tiny.pair(2)], max_new_tokens=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    for (ours, tensor), (theirs, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert ours == theirs and torch.equal(tensor, other)
    assert generate.write(loaded, loaded_processor, [question, tiny.pair(2)], max_new_tokens=3) == written
    batch = processor.collate(pack(processor.lay_out(tiny.story(1), "joint", 256), 256), align=True)
    model.config.alignment_loss_weight = 1.0
    output = model.train()(**batch.inputs(), generator=torch.Generator().manual_seed(0))
    output.loss.backward()
    assert output.alignment_loss.isfinite() and output.language_loss.isfinite() and output.diffusion_loss.isfinite()
    assert all(parameter.grad.any() for parameter in model.visual_projector.parameters())
    assert all(parameter.grad is None for parameter in model.vision_model.parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_with_the_eye_reads_after_quantisation(eye, bits, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # a kernel for wider layers
    model, processor = build(eye[0])
    model.save_pretrained(tmp_path)
    options = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    quantised = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=options)
    pixels = processor.read_pixels([tiny.picture(1), tiny.picture(2)])
    wanted, found = (one.patch_features(pixels) for one in (model, quantised))
    assert found.shape == wanted.shape and torch.nn.functional.cosine_similarity(found, wanted, dim=-1).mean() > 0.9
    assert len(generate.write(quantised, processor, [tiny.conversation(1)], max_new_tokens=3)) == 1


def test_a_training_on_features_computed_in_advance_has_the_same_losses(eye, world, tmp_path):
    found = []
    for precompute in (False, True):
        settings = experiment(steps=2, precompute=precompute, loss_weights={"alignment": 1.0})
        model = settings.model.model_copy(update={"visual_projector_type": "mlp"})
        settings = settings.model_copy(update={"model": model})
        options = {"foundations": eye[0], "encoded_pictures": tmp_path / "cache"}
        found.append(losses(trained := run(world, tmp_path / str(precompute), settings, **options)))
    for plain, cached in zip(*found, strict=True):
        assert cached == pytest.approx(plain, abs=1.1e-6, rel=1e-6, nan_ok=True)
    loaded, _ = checkpoint.load_model(eye[0], [trained])
    assert list(loaded.visual_projector.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_an_alignment_loss_needs_features_as_wide_as_the_conditions(eye):
    model, _ = build(eye[0])
    stage = experiment(loss_weights={"alignment": 1.0}).stages["igpt"]
    trainer.apply_stage(model, stage)
    model.config.unet_config = {**model.config.unet_config, "cross_attention_dim": 20}
    with pytest.raises(trainer.StageProblem, match="the eye's features have size 24, the decoder's conditions 20"):
        trainer.apply_stage(model, stage)


def test_an_offloaded_eye_is_brought_to_its_device(eye):
    """`enable_model_cpu_offload` does so by a hook of `forward`, which reading one layer does not call."""
    model, processor = build(eye[0])
    brought = []

    class Hook(ModelHook):
        def pre_forward(self, module, *inputs, **options):
            brought.append(module)
            return inputs, options

    add_hook_to_module(model.vision_model, Hook())
    model.patch_features(processor.read_pixels([tiny.picture(1)]))
    assert brought == [model.vision_model]


def test_measurements_with_clip_refuse_another_eye(eye):
    for measure in (networks.Clip, lambda folder: few_shot.clip_embeddings([tiny.picture(1)], folder)):
        with pytest.raises(BenchmarkProblem, match="clip: holds .*, but CLIP is needed here"):
            measure(eye[0] / "clip")


# ---- what does not fit ---------------------------------------------------------------------------------------------


def test_another_vision_model_or_pictures_of_another_size_are_refused(tmp_path):
    folder = tiny.foundations(tmp_path)
    clip = CLIPVisionConfig(**TOWER, intermediate_size=48, image_size=24, patch_size=4)
    small = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE)
    write_eye(folder / "clip", lambda: CLIPVisionModel(clip), small)
    with pytest.raises(FoundationProblem, match=r"shape \[3, 16, 16\], but clip_vision_model takes 24 x 24"):
        build(folder)
    write_eye(folder / "clip", EYES["dinov2"][0], BitImageProcessor(size={"shortest_edge": 18}, do_center_crop=False))
    with pytest.raises(FoundationProblem, match="dinov2 takes squares of a multiple of 4 pixels"):
        build(folder)
    native = Siglip2VisionConfig(**TOWER, intermediate_size=48, num_patches=16, patch_size=4)
    write_eye(folder / "clip", lambda: Siglip2VisionModel(native), small)
    with pytest.raises(FoundationProblem, match=r"siglip2_vision_model cannot be the eye \(.*no fixed size"):
        build(folder)


def test_the_authors_format_has_clip_and_a_linear_projector_only(tmp_path):
    folder = tiny.foundations(tmp_path / "foundations")
    metadata = {
        "foundations": checkpoint.foundation_digests(folder),
        "model": {"num_dream_queries": 64, "visual_projector_type": "mlp"},
    }
    checkpoint.save_trained(tmp_path / "c", {"dream_queries": torch.zeros(1, 64, 32)}, metadata, "")
    with pytest.raises(OfficialProblem, match="its projector mlp; the official code supports only CLIP with a linear"):
        export_official(folder, [tmp_path / "c"], tmp_path / "out")


# ---- LLaVA's projector ---------------------------------------------------------------------------------------------


def imported(source: Path, foundations: Path, out: Path) -> None:
    parser = argparse.ArgumentParser()
    import_official.add_arguments(parser)
    import_official.main(parser.parse_args([f"--source={source}", f"--foundations={foundations}", f"--out={out}"]))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_projector_that_llava_released_is_a_checkpoint(tmp_path, kind, capsys):
    folder = tiny.foundations(tmp_path / "foundations")
    released = build(folder, visual_projector_type=kind, seed=5)[0].visual_projector.state_dict()
    torch.save(
        {f"model.mm_projector.{name}": tensor for name, tensor in released.items()}, tmp_path / "mm_projector.bin"
    )
    save_file(released, tmp_path / "mm_projector.safetensors")
    for suffix in (".bin", ".safetensors"):
        imported(tmp_path / f"mm_projector{suffix}", folder, tmp_path / suffix)
        model, _ = checkpoint.load_model(folder, [tmp_path / suffix])
        assert all(torch.equal(tensor, released[name]) for name, tensor in model.visual_projector.state_dict().items())
    assert f"visual projector ({kind})" in capsys.readouterr().out


def test_a_projector_of_another_size_and_a_pickle_with_code_are_refused(tmp_path):
    folder = tiny.foundations(tmp_path / "foundations")
    save_file({"0.weight": torch.zeros(4, 4)}, tmp_path / "p.safetensors")
    with pytest.raises(OfficialProblem, match=r"has .*\(4, 4\).*, but .* between clip/ and llm/ has .*\(32, 24\)"):
        imported(tmp_path / "p.safetensors", folder, tmp_path / "out")
    torch.save({"weight": shutil.rmtree}, tmp_path / "p.bin")
    with pytest.raises(OfficialProblem, match="pickle is malformed or contains code"):
        imported(tmp_path / "p.bin", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
