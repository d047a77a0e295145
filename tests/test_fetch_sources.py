"""Data sets are fetched complete and correct, or not at all, whatever the network and the server do."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from pathlib import Path

import pytest

import loopback
from dreamllm import cli
from dreamllm.sources import fetch as module
from dreamllm.sources.fetch import fetch, lock_path
from dreamllm.sources.manifest import Source
from dreamllm.sources.services import http
from dreamllm.sources.services.http import FetchProblem, download

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")


@pytest.fixture
def server(monkeypatch):
    with loopback.serve() as running:
        running.files["/set.zip"] = CONTENT
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def source(*files: dict, **more) -> Source:
    about = {"title": "set", "format": "as_is", "availability": "open", "source": "test"}
    return Source.model_validate(about | {"files": list(files)} | more)


def nothing_but(folder: Path, *names: str) -> bool:
    """Whether no file lies under its final name in `folder` but these."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} == set(names)


def test_a_file_is_fetched_and_its_digest_recorded(server, tmp_path):
    lock = fetch("set", source({"url": f"{server.url}/set.zip"}), tmp_path / "set")
    assert (tmp_path / "set/set.zip").read_bytes() == CONTENT
    assert lock["files"]["set.zip"] == {"sha256": SHA256, "bytes": len(CONTENT), "origin": f"{server.url}/set.zip"}
    assert json.loads(lock_path(tmp_path / "set").read_text()) == lock


def test_a_broken_connection_resumes(server, tmp_path):
    server.faults["/set.zip"] = [("cut", 1_200_000), ("cut", 700_000)]
    download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    ranges = [headers.get("Range") for headers in server.requests("/set.zip")]
    starts = [int(range_.removeprefix("bytes=").rstrip("-")) for range_ in ranges[1:]]
    assert ranges[0] is None and 0 < starts[0] < starts[1], "each request is for what is missing"
    assert nothing_but(tmp_path, "set.zip")


def test_a_later_call_resumes_after_an_interrupted_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    server.faults["/set.zip"] = [("cut", 1_500_000), ("cut", 0)]
    wanted = source({"url": f"{server.url}/set.zip", "sha256": SHA256})
    with pytest.raises(FetchProblem, match="the connection broke .* run the same command again"):
        fetch("set", wanted, tmp_path / "set")
    assert nothing_but(tmp_path), "half a file has no final name"
    fetch("set", wanted, tmp_path / "set")
    assert int(server.requests("/set.zip")[-1]["Range"].removeprefix("bytes=").rstrip("-")) >= 1_000_000
    assert (tmp_path / "set/set.zip").read_bytes() == CONTENT


def test_a_part_of_another_version_is_not_continued(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    server.faults["/set.zip"] = [("cut", 1_500_000), ("cut", 0)]
    with pytest.raises(FetchProblem):
        download(f"{server.url}/set.zip", tmp_path / "set.zip")
    server.files["/set.zip"] = CONTENT[::-1]
    download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT[::-1]


def test_without_ranges_a_download_starts_again(server, tmp_path):
    server.faults["/set.zip"] = [("cut", 1_500_000), ("ignore range",)]
    download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_server_that_sends_less_than_the_range_is_asked_for_the_rest(server, tmp_path):
    server.faults["/set.zip"] = [("cut", 1_200_000), ("short range", 500_000)]
    download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for_as_long_as_it_says(server, tmp_path, status):
    server.faults["/set.zip"] = [("status", status, {"Retry-After": "1"})]
    begin = time.monotonic()
    download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert time.monotonic() - begin >= 1
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_an_error(server, tmp_path):
    server.faults["/set.zip"] = [("status", 503)] * 20
    with pytest.raises(FetchProblem, match="the server answers 503 .*try again later"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert nothing_but(tmp_path)


def test_redirects_are_followed(server, tmp_path):
    server.faults["/moved.zip"] = [("redirect", "/set.zip")]
    download(f"{server.url}/moved.zip", tmp_path / "moved.zip")
    assert (tmp_path / "moved.zip").read_bytes() == CONTENT


def test_a_missing_file_and_a_web_page_are_errors(server, tmp_path):
    with pytest.raises(FetchProblem, match="answers 404 .*no longer there"):
        download(f"{server.url}/nothing.zip", tmp_path / "nothing.zip")
    server.faults["/set.zip"] = [("html",)]
    with pytest.raises(FetchProblem, match="a web page instead of a file"):
        download(f"{server.url}/set.zip", tmp_path / "set.zip")
    assert nothing_but(tmp_path)


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(FetchProblem, match=f"sha256 is {SHA256}, the manifest says 0000"):
        fetch("set", source({"url": f"{server.url}/set.zip", "sha256": "0" * 64}), tmp_path / "set")
    assert nothing_but(tmp_path)
    assert not list(tmp_path.rglob("set.zip"))


def test_a_file_that_changed_since_the_first_fetch_is_refused(server, tmp_path):
    wanted = source({"url": f"{server.url}/set.zip"})
    fetch("set", wanted, tmp_path / "set")
    (tmp_path / "set/set.zip").unlink()
    server.files["/set.zip"] = CONTENT + b"more"
    with pytest.raises(FetchProblem, match="the lock file says"):
        fetch("set", wanted, tmp_path / "set")
    lock_path(tmp_path / "set").unlink()
    fetch("set", wanted, tmp_path / "set")
    assert (tmp_path / "set/set.zip").read_bytes() == CONTENT + b"more"


def test_a_second_fetch_checks_and_asks_for_nothing(server, tmp_path):
    wanted = source({"url": f"{server.url}/set.zip"})
    fetch("set", wanted, tmp_path / "set")
    asked = len(server.seen)
    fetch("set", wanted, tmp_path / "set")
    assert len(server.seen) == asked
    (tmp_path / "set/set.zip").write_bytes(CONTENT[:-1] + b"x")
    fetch("set", wanted, tmp_path / "set")
    assert (tmp_path / "set/set.zip").read_bytes() == CONTENT


def test_ranges_of_numbers_and_numbers_that_are_missing(server, tmp_path):
    for number in (0, 1, 3):
        server.files[f"/docs_{number}.zip"] = str(number).encode()
    fetch("set", source({"url": f"{server.url}/docs_{{0..3}}.zip", "missing": [2], "to": "docs"}), tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set/docs").iterdir()) == [f"docs_{n}.zip" for n in (0, 1, 3)]


def test_a_set_appears_when_all_its_files_are_there(server, tmp_path):
    files = [{"url": f"{server.url}/set.zip"}, {"url": f"{server.url}/nothing.zip"}]
    with pytest.raises(FetchProblem, match="404"):
        fetch("set", source(*files), tmp_path / "set")
    assert nothing_but(tmp_path)
    server.files["/nothing.zip"] = b"now"
    asked = len(server.requests("/set.zip"))
    fetch("set", source(*files), tmp_path / "set")
    assert len(server.requests("/set.zip")) == asked, "what was whole is not fetched again"
    assert (tmp_path / "set/nothing.zip").read_bytes() == b"now"


def test_two_files_of_one_name_are_refused(server, tmp_path):
    files = [{"url": f"{server.url}/set.zip"}, {"url": f"{server.url}/other/set.zip"}]
    with pytest.raises(FetchProblem, match="two files would be called set.zip"):
        fetch("set", source(*files), tmp_path / "set")


def test_too_little_disk_space_is_an_error_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(FetchProblem, match="needs 0.0 GB"):
        module.check_space(tmp_path, "http://x", 11)


def test_two_fetches_of_one_set_do_not_mix(server, tmp_path):
    with module.FileLock(tmp_path / ".set.lock"):
        problems = []

        def other() -> None:
            try:
                fetch("set", source({"url": f"{server.url}/set.zip"}), tmp_path / "set")
            except FetchProblem as problem:
                problems.append(str(problem))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another process is fetching it" in problems[0]


# ---- the Hub -------------------------------------------------------------------------------------------------------

HUB = {"README.md": b"about", "list.json": b"[]", "data/train-0.bin": CONTENT, "data/train-1.bin": b"second"}


def test_files_of_a_hub_repository_are_fetched_at_one_commit(server, tmp_path):
    server.hub["datasets/owner/name"] = HUB
    wanted = source(
        {"hub": "datasets/owner/name", "path": "data/train-*"}, {"hub": "datasets/owner/name", "path": "list.json"}
    )
    lock = fetch("set", wanted, tmp_path / "set")
    assert (tmp_path / "set/data/train-0.bin").read_bytes() == CONTENT
    assert set(lock["files"]) == {"data/train-0.bin", "data/train-1.bin", "list.json"}
    assert lock["files"]["list.json"]["origin"] == f"datasets/owner/name@{loopback.COMMIT}/list.json"
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    assert len(files) == 3, "huggingface_hub's notes are gone"


def test_a_later_fetch_asks_the_hub_for_the_commit_of_the_first(server, tmp_path):
    server.hub["datasets/owner/name"] = HUB
    wanted = source({"hub": "datasets/owner/name", "path": "list.json"})
    fetch("set", wanted, tmp_path / "set")
    (tmp_path / "set/list.json").unlink()
    server.seen.clear()
    fetch("set", wanted, tmp_path / "set")
    assert server.requests(f"/api/datasets/owner/name/revision/{loopback.COMMIT}")
    assert not server.requests("/api/datasets/owner/name")


def test_a_broken_connection_to_the_hub_resumes(server, tmp_path):
    server.hub["datasets/owner/name"] = HUB
    path = f"/datasets/owner/name/resolve/{loopback.COMMIT}/data/train-0.bin"
    server.faults[path] = [("cut", 1_200_000)]
    fetch("set", source({"hub": "datasets/owner/name", "path": "data/train-0.bin"}), tmp_path / "set")
    assert (tmp_path / "set/data/train-0.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_retried(server, tmp_path, status):
    server.hub["datasets/owner/name"] = HUB
    path = f"/datasets/owner/name/resolve/{loopback.COMMIT}/list.json"
    server.faults[path] = [("status", status, {"Retry-After": "1"})]
    server.faults["/api/datasets/owner/name"] = [("status", status, {"Retry-After": "1"})]
    fetch("set", source({"hub": "datasets/owner/name", "path": "list.json"}), tmp_path / "set")
    assert (tmp_path / "set/list.json").read_bytes() == b"[]"


def test_a_missing_revision_repository_or_file_is_an_error(server, tmp_path):
    server.hub["datasets/owner/name"] = HUB
    about = {"hub": "datasets/owner/name", "path": "list.json"}
    with pytest.raises(FetchProblem, match="there is no revision 'v9'"):
        fetch("set", source(about | {"revision": "v9"}), tmp_path / "set")
    with pytest.raises(FetchProblem, match="conditions are not accepted.*HF_TOKEN"):
        fetch("set", source(about | {"hub": "datasets/owner/other"}), tmp_path / "set")
    with pytest.raises(FetchProblem, match="no file matches 'list.csv'"):
        fetch("set", source(about | {"path": "list.csv"}), tmp_path / "set")
    assert nothing_but(tmp_path)


def test_a_gated_repository_is_an_error_that_does_not_show_the_token(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 34)
    server.faults["/api/datasets/owner/name"] = [("status", 403, {"X-Error-Code": "GatedRepo"})]
    with pytest.raises(FetchProblem, match="conditions are not accepted") as problem:
        fetch("set", source({"hub": "datasets/owner/name", "path": "*"}), tmp_path / "set")
    assert "ssss" not in str(problem.value)


def test_files_with_another_digest_than_the_hub_states_are_refused(server, tmp_path, monkeypatch):
    server.hub["datasets/owner/name"] = HUB
    real = loopback._entry

    def lying(path: str, content: bytes) -> dict:
        entry = real(path, content)
        if "lfs" in entry:
            entry["lfs"]["oid"] = "0" * 64
        return entry

    monkeypatch.setattr(loopback, "_entry", lying)
    with pytest.raises(FetchProblem, match="the Hub says 0000"):
        fetch("set", source({"hub": "datasets/owner/name", "path": "data/train-1.bin"}), tmp_path / "set")
    assert nothing_but(tmp_path)


# ---- what a person brings, and the command -------------------------------------------------------------------------


def test_a_set_that_must_be_requested_is_taken_from_by_hand(tmp_path):
    wanted = source(availability="request", obtain="Fill in the form.", substitute="obelics")
    with pytest.raises(FetchProblem, match="Fill in the form. Put its files into .*by_hand/set. Or use obelics"):
        fetch("set", wanted, tmp_path / "set", tmp_path / "by_hand")
    (tmp_path / "by_hand/set").mkdir(parents=True)
    (tmp_path / "by_hand/set/docs.jsonl").write_text("{}")
    lock = fetch("set", wanted, tmp_path / "set", tmp_path / "by_hand")
    assert (tmp_path / "set/docs.jsonl").read_text() == "{}"
    assert lock["files"]["docs.jsonl"]["bytes"] == 2


def test_the_command_fetches_and_explains(server, tmp_path, capsys):
    about = f"title: set, format: as_is, availability: open, source: test, files: [{{url: '{server.url}/set.zip'}}]"
    (tmp_path / "sources.yaml").write_text(f"mine: {{{about}, unknown: all}}\n")
    flags = ["--manifest", str(tmp_path / "sources.yaml"), "--out", str(tmp_path / "raw/mine")]
    cli.main(["fetch-source", "--source", "mine", *flags])
    assert "1 files, 3,000,000 bytes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no set 'mind'; did you mean mine?"):
        cli.main(["fetch-source", "--source", "mind", *flags])
