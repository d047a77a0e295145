"""People draw, ask and chat with a model given as a checkpoint, an exported folder or a name on the Hub."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor

import loopback
import tiny
from dreamllm import cli
from dreamllm.data.document import Document, Picture, Text
from dreamllm.evaluate import model_options
from dreamllm.model import generate, precision
from dreamllm.model.pipeline import DreamLLMPipeline
from dreamllm.model.sampling import PictureSampling
from dreamllm.repro.report import hub_card
from dreamllm.train import checkpoint
from dreamllm.verbs import export

MODEL, PROCESSOR = tiny.build()
QUICK = ["--steps", "2"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load_model", lambda foundations, checkpoints: (MODEL, PROCESSOR))
        patch.setattr(hub_card, "card", lambda checkpoints: "a card")
        export.export(Path("f"), [Path("c")], folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precision, "resolve", lambda chosen: "fp32")


@pytest.fixture
def loaded(monkeypatch):
    """The verbs get the tiny model, whatever they are told to load."""
    monkeypatch.setattr(model_options, "load", lambda arguments: (MODEL, PROCESSOR))


def own(document: Document, seed: int) -> np.ndarray:
    return np.asarray(generate.draw(MODEL, PROCESSOR, [document], [seed], PictureSampling(steps=2))[0])


# ---- draw, ask, chat -----------------------------------------------------------------------------------------------


def test_draw_writes_exactly_one_image_for_each_prompt(exported, capsys, tmp_path):
    cli.main(["draw", "A ship.", "Two dogs.", "--model", str(exported), "--seed", "3", *QUICK])
    assert capsys.readouterr().out.split() == ["scratch/drawn/1.png", "scratch/drawn/2.png"]
    for number, words in enumerate(["A ship.", "Two dogs."]):
        made = np.asarray(Image.open(tmp_path / f"scratch/drawn/{number + 1}.png"))
        assert np.array_equal(made, own(Document("", "text", (Text(words),)), 3 + number))


def test_draw_reads_images_in_its_prompts(loaded, tmp_path):
    tiny.picture(1).save("a.png")
    cli.main(["draw", "<image> in the snow", "--image", "a.png", "--out", "out", *QUICK])
    read = Document("", "interleaved", (Picture(tiny.picture(1)), Text(" in the snow")))
    assert np.array_equal(np.asarray(Image.open("out/1.png")), own(read, 0))


def test_ask_answers_each_question_about_the_image(loaded, capsys):
    tiny.picture(1).save("a.png")
    questions = ["What is this?", "Is <image> green?"]
    cli.main(["ask", "--image", "a.png", *questions, "--max-new-tokens", "6"])
    shown = Picture(tiny.picture(1), "user")
    documents = [
        Document("1", "conversation", (shown, Text("What is this?", "user"))),
        Document("2", "conversation", (Text("Is ", "user"), shown, Text(" green?", "user"))),
    ]
    answers = [generate.write(MODEL, PROCESSOR, [document], max_new_tokens=6)[0] for document in documents]
    assert capsys.readouterr().out == "\n".join(answers) + "\n"


def say(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_chat_answers_remembers_and_saves_images(loaded, monkeypatch, capsys):
    tiny.picture(1).save("a.png")
    say(monkeypatch, "/image a.png", "What is this?", "/draw Two dogs.", "", "/help", "/reset", "/draw Two dogs.")
    cli.main(["chat", "--max-new-tokens", "4", *QUICK])
    out = capsys.readouterr().out
    question = (Picture(tiny.picture(1), "user"), Text("What is this?", "user"))
    prompt = Document("", "conversation", question)
    writing = generate.TextSampling(max_new_tokens=4, max_pictures=4)
    (answer,) = generate.interleave(MODEL, PROCESSOR, [prompt], [0], writing, PictureSampling(steps=2))
    assert answer.parts[0].text in out and "[stopped at --max-new-tokens]" in out
    remembered = Document("", "conversation", (*question, *answer.parts, Text("Two dogs.", "user")))
    assert np.array_equal(np.asarray(Image.open("scratch/chat/1.png")), own(remembered, 1))
    fresh = Document("", "conversation", (Text("Two dogs.", "user"),))
    assert np.array_equal(np.asarray(Image.open("scratch/chat/2.png")), own(fresh, 2)), "after /reset"
    assert "[image: scratch/chat/2.png]" in out and out.count("/image FILE") == 2, "at the beginning, and for /help"


def test_chat_goes_on_after_a_mistake(loaded, monkeypatch, capsys):
    long = " ".join(["the"] * 300)
    say(monkeypatch, "/image none.png", long, "/draw A ship.", "/quit", "/draw Never.")
    cli.main(["chat", "--max-new-tokens", "4", *QUICK])
    out = capsys.readouterr().out
    assert "none.png: [Errno 2] No such file or directory" in out and ": /reset begins a new conversation" in out
    assert Path("scratch/chat/1.png").exists() and not Path("scratch/chat/2.png").exists()


# ---- --model -------------------------------------------------------------------------------------------------------


def test_an_exported_folder_is_model_processor_and_pipeline(exported):
    model, processor = AutoModel.from_pretrained(exported), AutoProcessor.from_pretrained(exported)
    pipe = DreamLLMPipeline.from_pretrained(exported)
    for name, value in MODEL.state_dict().items():
        assert value.equal(model.state_dict()[name]) and value.equal(pipe.model.state_dict()[name]), name
    assert processor.context == pipe.processor.context == PROCESSOR.context


def test_a_pipeline_and_a_model_on_the_hub_are_drawn_with(exported, monkeypatch, capsys, tmp_path):
    expected = own(Document("", "text", (Text("A ship."),)), 0)
    DreamLLMPipeline.from_pretrained(exported).save_pretrained(tmp_path / "pipe")
    with loopback.serve() as server:
        server.hub["models/me/mine"] = {
            str(path.relative_to(exported)): path.read_bytes() for path in exported.rglob("*") if path.is_file()
        } | {"evil.bin": b"pickle"}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        for number, model in enumerate([str(tmp_path / "pipe"), "me/mine"]):
            cli.main(["draw", "A ship.", "--model", model, "--out", str(number), *QUICK])
            assert np.array_equal(np.asarray(Image.open(f"{number}/1.png")), expected)
        assert not server.requests("/me/mine/resolve/main/evil.bin") and not list(tmp_path.rglob("evil.bin"))
        with pytest.raises(SystemExit, match="--model me/other: no such folder, nor a model that the Hub gives"):
            cli.main(["draw", "A ship.", "--model", "me/other"])


def test_a_checkpoint_is_loaded_after_those_it_needs(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        checkpoint, "load_for_inference", lambda *given: (seen.append(given[:2]), (MODEL, PROCESSOR))[1]
    )
    first, second = tmp_path / "alignment", tmp_path / "sft"
    foundations = tiny.foundations(tmp_path / "f")
    model, _ = checkpoint.build_from_foundations(*(foundations / one for one in checkpoint.foundation_folders({})))
    about = {"foundations": checkpoint.foundation_digests(foundations), "model": {"num_dream_queries": 64}}
    for folder, parts, init in (
        (first, ["dream_queries", "visual_projector"], []),
        (second, ["dream_queries"], [first]),
    ):
        model.train_only(parts)
        digests = [checkpoint.read_metadata(one)["tensors"] for one in init]
        record = (
            about
            | {"stage": folder.name, "init": digests}
            | ({"ancestors": [checkpoint.about_ancestor(one) for one in init]} if init else {})
        )
        checkpoint.save_trained(folder, checkpoint.trained_parameters(model), record, "step\n")
    cli.main(["draw", "A ship.", "--model", str(second), "--foundations", str(foundations), *QUICK])
    assert seen == [(foundations, [first, second])]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "is no model: it has no checkpoint.json"),
        ("{", "config.json: malformed JSON"),
        ({"model_type": "llama"}, "config.json: is of a model of type 'llama', not of DreamLLM"),
        (
            {"model_type": "dreamllm"},
            "is in the format of the authors' code; convert it with `dreamllm import-official`",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["draw", "ask", "generate"])
def test_a_folder_that_holds_no_model_is_named_in_one_line(verb, config, problem, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(SystemExit, match=problem):
        cli.main([verb, "A ship.", "--model", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("draw x --model a --checkpoints b", "--model and --checkpoints were given"),
        ("draw x --image none.png", "dreamllm draw: none.png: .*No such file"),
        ("draw <image>", "1 <image> placeholders, but 0 pictures"),
        ("draw x --guidance 0", "guidance is 0.0"),
        ("ask x? --max-new-tokens 0", "--max-new-tokens is 0"),
        ("ask <image>?", "1 <image> placeholders, but 0 pictures"),
        ("chat --top-p 2", "top_p is 2.0"),
        ("chat --top-p 0.5", "at temperature 0, top_k and top_p have no effect"),
        ("generate x --repetition-penalty 0", "repetition_penalty is 0.0"),
    ],
)
def test_wrong_flags_are_named_before_a_model_is_loaded(arguments, problem):
    with pytest.raises(SystemExit, match=problem):
        cli.main(arguments.split())
