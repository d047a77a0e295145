"""Answers of services, downloads and files of earlier runs are bounded and read strictly: one line of error."""

from __future__ import annotations

import gzip
import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import loopback
from dreamllm.config.reading import ConfigProblem
from dreamllm.config.sources import InstructionWriter
from dreamllm.evaluate.features import read_features, write_features
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.sources import fetch, released
from dreamllm.sources.services import http
from dreamllm.sources.services.chat import Chat
from dreamllm.sources.services.http import LARGEST_ANSWER, FetchProblem


@pytest.fixture
def service():
    with loopback.serve() as server:
        yield server


def ask(server: loopback.Loopback, cache: Path) -> str:
    settings = InstructionWriter(endpoint=f"{server.url}/v1", model="writer")
    return Chat(settings, cache, "").ask([{"role": "user", "content": "Hello?"}])


def answer_with(server: loopback.Loopback, body: bytes, headers: dict[str, str] | None = None, code: int = 200) -> None:
    server.answers["/v1/chat/completions"] = lambda *_: (code, headers or {}, body)


@pytest.mark.parametrize("code", [200, 401])
def test_an_answer_without_end_is_not_read_to_its_end(service, tmp_path, code):
    answer_with(service, b" " * (LARGEST_ANSWER + 1), code=code)
    with pytest.raises(FetchProblem, match="the answer has more than 16,000,000 bytes"):
        ask(service, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_small_answer_that_unpacks_to_gigabytes_is_not_unpacked(service, tmp_path):
    answer_with(service, gzip.compress(b" " * 5 * LARGEST_ANSWER), {"Content-Encoding": "gzip"})
    with pytest.raises(FetchProblem, match="the answer has more than 16,000,000 bytes"):
        ask(service, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": Infinity}}',
        b'{"choices": [{"message": {"content": "cut \\ud83d"}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
        b"\xff\xfe",
    ],
    ids=["nested", "infinite", "surrogate", "digits", "bytes"],
)
def test_an_answer_that_is_no_answer_is_one_line(service, tmp_path, body):
    answer_with(service, body)
    with pytest.raises(FetchProblem, match="is not a chat completion"):
        ask(service, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"text": "a"}', '{"text": 7, "in": 1, "out": 1}', "7"])
def test_an_answer_that_was_kept_and_damaged_is_named(service, tmp_path, content):
    answer_with(service, json.dumps({"choices": [{"message": {"content": "a"}}]}).encode())
    assert ask(service, tmp_path) == "a"
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(content)
    with pytest.raises(FetchProblem, match=f"{kept.name}: is no answer that was kept; delete"):
        ask(service, tmp_path)


def test_a_file_that_does_not_fit_on_the_disk_is_not_begun(service, tmp_path, monkeypatch):
    service.files["/data.bin"] = b"x" * 1000
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(http.shutil, "disk_usage", lambda path: usage(999))
    with pytest.raises(FetchProblem, match=r"has 1,000 bytes, .* has room for 999"):
        http.download(f"{service.url}/data.bin", tmp_path / "data.bin")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(http.shutil, "disk_usage", lambda path: usage(1000))
    http.download(f"{service.url}/data.bin", tmp_path / "data.bin")
    assert (tmp_path / "data.bin").stat().st_size == 1000


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}', '{"%s/data.bin": 7}'])
def test_an_odd_note_beside_a_part_starts_the_download_again(service, tmp_path, content):
    service.files["/data.bin"] = b"x" * 1000
    (tmp_path / "data.bin.part").write_bytes(b"other")
    (tmp_path / "data.bin.part.json").write_text(content.replace("%s", service.url))
    http.download(f"{service.url}/data.bin", tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"a": {"sha256": 7}}}'])
def test_a_lock_file_that_is_none_is_named(tmp_path, content):
    (tmp_path / "set.lock.json").write_text(content)
    with pytest.raises(FetchProblem, match=r"set.lock.json: is no lock file"):
        fetch.fetch("set", None, tmp_path / "set")


@pytest.mark.parametrize("content", ["a: [", "- 1", "a: 1", "a: {repo: x}", "\xff"])
def test_a_list_of_released_checkpoints_that_is_none_is_named(tmp_path, content):
    (tmp_path / "released.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises((FetchProblem, ConfigProblem), match=r"released.yaml"):
        released.read_entry(tmp_path / "released.yaml", "a")


# ---- stored features -------------------------------------------------------------------------------------------------

GENERATED = {"ids": ["a", "b"], "networks": {"clip": "w"}, "benchmark": "draw", "sample": 0, "protocol": {}}
ARRAYS = {
    "clip": np.ones((2, 3), np.float32),
    "clip_prompt": np.ones(2, np.float32),
    "clip_captions": np.ones(2, np.float32),
    "seeds": np.array([1, 2]),
}
REAL = {"networks": {"clip": "w"}, "n": 2}
STATISTICS = {"clip.mean": np.ones(3), "clip.covariance": np.ones((3, 3))}


@pytest.mark.parametrize(("about", "arrays"), [(GENERATED, ARRAYS), (REAL, STATISTICS)], ids=["generated", "real"])
def test_each_part_of_stored_features_may_be_wrong_and_is_named(tmp_path, about, arrays):
    path = tmp_path / "features.safetensors"
    write_features(path, about, arrays)
    assert read_features(path).about == about
    for name in arrays:
        spoilt = arrays[name].astype(np.float64)
        for value in (np.nan, np.inf):
            spoilt.flat[-1] = value
            write_features(path, about, arrays | {name: spoilt})
            with pytest.raises(BenchmarkProblem, match=f"{name}: holds NaN or infinite values"):
                read_features(path)
        write_features(path, about, arrays | {name: arrays[name][None]})
        with pytest.raises(BenchmarkProblem, match=f"{name}: has shape"):
            read_features(path)
        write_features(path, about, {key: value for key, value in arrays.items() if key != name})
        with pytest.raises(BenchmarkProblem, match=f"{name}: is missing"):
            read_features(path)
    for key in about:
        for value in (None, "x", [1], 1.5):
            if not isinstance(value, type(about[key])):
                write_features(path, about | {key: value}, arrays)
                with pytest.raises(BenchmarkProblem, match=f"about: field '{key}' should be"):
                    read_features(path)
    write_features(path, [], arrays)
    with pytest.raises(BenchmarkProblem, match="about: expected a JSON object, found list"):
        read_features(path)
