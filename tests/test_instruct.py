"""Instructions for documents: templates are deterministic, a paid service is asked once, its key is never shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loopback
import tiny
from dreamllm import cli
from dreamllm.config.sources import InstructionWriter, SourceSettings
from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.sources.instruct import ServiceWriter, TemplateWriter, instructed, usable, write_instructions
from dreamllm.sources.records import BuildProblem, Rejected
from dreamllm.sources.services import http
from dreamllm.sources.services.http import FetchProblem

KEY = "sk-very-secret-0123456789"
PAIR = Document("p", "pair", (Picture(tiny.picture(1)), Text("a red bus.")))
PAGE = Document("s", "interleaved", (Text("One day. It rained."), Picture(tiny.picture(2)), Text("Then it stopped.")))


@pytest.fixture
def base(tmp_path) -> Path:
    documents = [Document(f"p{n}", "pair", (Picture(tiny.picture(n)), Text(f"caption {n}"))) for n in range(6)]
    shards.write(documents, tmp_path / "base/pairs", per_shard=4)
    return tmp_path / "base"


@pytest.fixture
def service(monkeypatch):
    """A server that writes instructions, and counts."""
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    with loopback.serve() as server:

        def answer(body: dict, headers: dict) -> tuple[int, dict, bytes]:
            assert headers["Authorization"] == f"Bearer {KEY}"
            text = f"Please draw {body['messages'][1]['content'].splitlines()[-1]}"
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            said = {"choices": [{"message": {"content": text}}], "usage": usage}
            return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

        server.answers["/v1/chat/completions"] = answer
        yield server


def writer(server: loopback.Loopback, cache: Path, **more) -> ServiceWriter:
    settings = InstructionWriter(endpoint=f"{server.url}/v1", model="writer", **more)
    return ServiceWriter(settings, cache, KEY)


def write(base: Path, by, out: Path, documents: int | None = None, parallel: int = 2):
    settings = SourceSettings(documents=documents)
    counted = write_instructions("mine", base, by, out, settings=settings, seed=0, parallel=parallel)
    return counted, list(shards.read(shards.find(out / "mine")))


def test_a_pair_becomes_a_request_for_its_picture():
    made = instructed(PAIR, "Draw it.")
    assert made.kind == "conversation" and made.parts[0] == Text("Draw it.", "user")
    assert [(type(part), part.role) for part in made.parts[1:]] == [(Picture, "assistant")]


def test_a_page_becomes_the_answer_to_its_instruction():
    made = instructed(PAGE, "Tell me.")
    assert [part.role for part in made.parts] == ["user"] + 3 * ["assistant"]
    assert [part.text for part in made.parts if isinstance(part, Text)][1:] == [
        "One day. It rained.",
        "Then it stopped.",
    ]


def test_templates_are_a_function_of_seed_and_document():
    written = [TemplateWriter(0).write(PAIR), TemplateWriter(0).write(PAGE)]
    assert written == [TemplateWriter(0).write(PAIR), TemplateWriter(0).write(PAGE)]
    assert "a red bus" in written[0] and "One day." in written[1] and "It rained" not in written[1]
    others = {TemplateWriter(seed).write(PAIR) for seed in range(20)}
    assert len(others) > 2


def test_template_instructions_are_laid_out_with_a_picture_to_draw(base, tmp_path):
    _, documents = write(base, TemplateWriter(0), tmp_path / "out", documents=4)
    assert len(documents) == 4 and len({document.id for document in documents}) == 4
    again = write(base, TemplateWriter(0), tmp_path / "again", documents=4, parallel=1)[1]
    assert [d.parts[0] for d in documents] == [d.parts[0] for d in again]
    _, processor = tiny.build()
    (sequence,) = processor.lay_out(documents[0], "joint", 300)
    assert len(sequence.draw_slots) == 1 and len(sequence.read_slots) == 1


def test_a_service_is_asked_once_for_each_document(base, tmp_path, service):
    first = writer(service, tmp_path / "cache", dollars_per_million=(10.0, 30.0))
    counted, documents = write(base, first, tmp_path / "out")
    assert counted.documents == 6 and documents[0].parts[0].text == "Please draw caption 0"
    assert first.cost() == {"in": 600, "out": 60, "requests": 6, "from cache": 0, "dollars": 0.0078}
    assert json.loads((tmp_path / "out/report.json").read_text())["cost"]["dollars"] == 0.0078
    asked = len(service.seen)
    second = writer(service, tmp_path / "cache")
    write(base, second, tmp_path / "again")
    assert len(service.seen) == asked and second.cost()["from cache"] == 6


def test_a_busy_service_is_waited_for(base, tmp_path, service):
    answers = iter([(429, {"Retry-After": "0"}, b"slow down"), (503, {"Retry-After": "0"}, b"")])
    real = service.answers["/v1/chat/completions"]
    service.answers["/v1/chat/completions"] = lambda body, headers: next(answers, None) or real(body, headers)
    counted, _ = write(base, writer(service, tmp_path / "cache"), tmp_path / "out", parallel=1)
    assert counted.documents == 6


@pytest.mark.parametrize("code", [200, 401, 500])
def test_the_key_is_never_shown(base, tmp_path, service, monkeypatch, capsys, code):
    def answer(body: dict, headers: dict) -> tuple[int, dict, bytes]:
        return code, {}, f"bad key: {headers['Authorization']}".encode()

    service.answers["/v1/chat/completions"] = answer
    config = Path(__file__).parent.parent / "config/embedded.yaml"
    section = f"name: mine\ninstruction_writer: {{endpoint: {service.url}/v1, model: writer}}"
    (tmp_path / "mine.yaml").write_text(config.read_text().replace("name: embedded", section))
    manifest = "title: x, availability: open, source: t, unknown: all, obtain: y"
    (tmp_path / "sources.yaml").write_text(
        f"base: {{{manifest}, format: gqa}}\nmine: {{{manifest}, format: instructions, written_from: base}}\n"
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    flags = ["--manifest", str(tmp_path / "sources.yaml"), "--config", str(tmp_path / "mine.yaml")]
    flags += ["--shards", str(base), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["write-instructions", "--source", "mine", *flags])
    said = capsys.readouterr()
    assert KEY not in said.out + said.err + str(stopped.value) and "***" in str(stopped.value)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_unreachable_service_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "BACKOFF", 0.001)
    settings = InstructionWriter(endpoint="http://127.0.0.1:9/v1", model="writer")
    with pytest.raises(FetchProblem, match="127.0.0.1"):
        ServiceWriter(settings, tmp_path, KEY).write(PAIR)


def test_unusable_answers_are_counted(base, tmp_path, service):
    texts = iter(["", "x" * 2000])

    def answer(body: dict, headers: dict) -> tuple[int, dict, bytes]:
        said = {"choices": [{"message": {"content": next(texts, '"Draw a bus."\n')}}]}
        return 200, {}, json.dumps(said).encode()

    service.answers["/v1/chat/completions"] = answer
    counted, documents = write(base, writer(service, tmp_path / "cache"), tmp_path / "out", parallel=1)
    assert dict(counted.rejected) == {"instruction is empty": 1, "instruction is too long": 1}
    assert {document.parts[0].text for document in documents} == {"Draw a bus."}
    assert usable("  ", "x") == Rejected("instruction is empty", "x")


def test_no_instruction_at_all_is_an_error(base, tmp_path, service):
    service.answers["/v1/chat/completions"] = lambda body, headers: (
        200,
        {},
        json.dumps({"choices": [{"message": {"content": None}}]}).encode(),
    )
    with pytest.raises(BuildProblem, match="no instruction could be written"):
        write(base, writer(service, tmp_path / "cache"), tmp_path / "out")


def test_an_endpoint_needs_a_model():
    with pytest.raises(ValueError, match="needs the name of its model"):
        InstructionWriter(endpoint="http://localhost:1/v1")
