"""Shards of a list are fetched while they are read, checked, kept in a cache of bounded size, and come in one order."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import loopback
import test_train
import tiny
from dreamllm import cli
from dreamllm.config.sources import SourceSettings
from dreamllm.data import remote, shards
from dreamllm.data.document import Document, Text
from dreamllm.data.layout import TokenSequence
from dreamllm.data.mixture import Mixture, MixtureProblem
from dreamllm.data.remote import RemoteShardProblem, ShardCache, read_list
from dreamllm.data.stream import Position, Stream, start_position
from dreamllm.sources import readers
from dreamllm.sources.build import build
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import BuildProblem
from dreamllm.train import feature_cache, trainer
from dreamllm.train.feature_cache import FeatureCacheProblem

PLENTY = 10**9


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)


@pytest.fixture
def server():
    with loopback.serve() as running:
        yield running


def entry(url: str, content: bytes, documents: int, **changes) -> dict:
    digest = hashlib.sha256(content).hexdigest()
    return {"url": url, "nsamples": documents, "filesize": len(content), "sha256": digest, **changes}


def write_list(path: Path, entries: list[dict]) -> Path:
    path.write_text(json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries}))
    return path


@pytest.fixture
def served(server, tmp_path) -> SimpleNamespace:
    """Twenty shards of three texts on the server; their list, and the local ones."""
    documents = (Document(f"text-{n}", "text", (Text(f"number {n}"),)) for n in range(60))
    local = shards.write(documents, tmp_path / "local" / "text", per_shard=3)
    server.files |= {f"/{path.name}": path.read_bytes() for path in local}
    entries = [entry(f"{server.url}/{path.name}", path.read_bytes(), 3) for path in local]
    listed = write_list(tmp_path / "text.json", entries)
    return SimpleNamespace(local=local, list=listed, entries=entries, size=local[0].stat().st_size)


def mixture(paths: list[Path], folder: Path, limit: int = PLENTY, window: int = 12) -> Mixture:
    return Mixture({"text": paths}, {"text": 1.0}, seed=3, window=window, cache=ShardCache(folder, limit))


def ids(mixture: Mixture, begin: int = 0, end: int = 130) -> list[str]:
    return [shards.load(mixture.record("text", draw)[0]).id for draw in range(begin, end)]


# ---- order, and what is fetched ------------------------------------------------------------------------------------


def test_a_listed_set_has_the_order_of_a_local_one_and_each_shard_is_fetched_once(served, server, tmp_path):
    assert ids(mixture([served.list], tmp_path / "cache")) == ids(mixture(served.local, tmp_path / "none"))
    asked = [path for method, path, _ in server.seen if method == "GET"]
    assert sorted(asked) == sorted(f"/{path.name}" for path in served.local), "three epochs, one fetch"
    assert not (tmp_path / "none").exists()


def test_local_shards_of_a_list_are_read_where_they_are(served, tmp_path):
    listed = write_list(tmp_path / "local" / "text.json", [{"url": path.name, "nsamples": 3} for path in served.local])
    assert ids(mixture([listed], tmp_path / "none")) == ids(mixture(served.local, tmp_path / "none"))


def test_a_stream_goes_on_with_the_same_documents_with_an_empty_cache(served, tmp_path):
    def lay_out(document: Document, epoch: int) -> list[TokenSequence]:
        length = 1 + int(document.id.split("-")[1]) % 7
        return [TokenSequence(document, (piece,) * length, (epoch,) * length) for piece in range(2)]

    def batches(folder: str, position: Position | None, count: int) -> list:
        whole = mixture([served.list], tmp_path / folder, 9 * served.size)

        def collate(rows):
            return [[(one.document.id, one.input_ids, one.labels) for one in row] for row in rows]

        stream = Stream(whole, lay_out, collate, 3, 16, position or start_position(whole))
        return list(islice(stream, count))

    whole = batches("one", None, 20)
    for stop in (1, 7):
        position = Position.from_json(json.loads(json.dumps(whole[stop - 1].position.to_json())))
        again = batches(f"other {stop}", position, 20 - stop)
        assert [one.collated for one in again] == [one.collated for one in whole[stop:]]
        assert again[-1].position == whole[-1].position


def test_the_cache_stays_below_its_limit_and_forgets_what_was_read_longest_ago(served, tmp_path):
    cache = ShardCache(tmp_path / "cache", 3 * served.size)
    found = [shard for shard, _ in read_list(served.list, cache)]
    for shard in found[:3]:
        shard.fetch()
    for age, shard in enumerate((found[1], found[2], found[0])):  # read in this order
        os.utime(shard.path, (age, age))
    found[3].fetch()
    assert [shard.path.exists() for shard in found[:4]] == [True, False, True, True]
    for shard in found:
        shard.fetch()
        assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= cache.limit


def test_an_order_is_read_through_a_cache_that_holds_one_block(served, tmp_path):
    small = mixture([served.list], tmp_path / "cache", 4 * served.size)  # 4 shards of 3 documents are a block of 12
    assert ids(small) == ids(mixture(served.local, tmp_path / "none"))
    with pytest.raises(RemoteShardProblem, match=r"machine\.shard_cache_gb: .* GB, the cache holds .* raise it"):
        ids(mixture([served.list], tmp_path / "smaller", 4 * served.size - 1))


def test_the_next_shards_are_fetched_ahead(served, server, tmp_path):
    ahead = mixture([served.list], tmp_path / "cache")
    ahead.record("text", 0)
    blocks = ahead._sets["text"]
    wanted = blocks.remote(blocks.block) + blocks.remote(blocks.following)
    assert len(wanted) == 8
    for shard in wanted:
        shard.fetch()  # waits for the thread that is fetching it
        assert len(server.requests(f"/{shard.address.rpartition('/')[2]}")) == 1


def test_what_a_killed_process_left_in_the_cache_is_removed(served, tmp_path):
    cache = ShardCache(tmp_path / "cache", PLENTY)
    shard = read_list(served.list, cache)[0][0]
    cache.folder.mkdir()
    left = cache.folder / ".a.tar.999999999"
    left.write_bytes(b"half")
    shard.fetch()
    assert not left.exists() and shard.path.exists()


# ---- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [("status", 503), ("status", 429), ("cut", 700), ("html",)])
def test_a_passing_fault_of_the_server_is_met_with_another_try(served, server, tmp_path, fault):
    server.faults["/text-00004.tar"] = [fault, fault]
    assert len(ids(mixture([served.list], tmp_path / "cache"), 0, 60)) == 60
    assert len(server.requests("/text-00004.tar")) == 3


@pytest.mark.parametrize(
    ("faults", "tries", "told"),
    [
        ([("status", 404)], 1, r"correct its address in the shard list"),
        ([("status", 403)], 1, r"set the credentials of this address in the environment"),
        ([("status", 500)] * 5, 5, r"in 5 tries .*500.*check that its address can be reached"),
        ([("html",)] * 5, 5, r"in 5 tries \(19 bytes came, the shard list says \d+\); bring the former file back"),
    ],
)
def test_a_shard_that_cannot_be_had_stops_with_its_name_and_what_to_do(served, server, tmp_path, faults, tries, told):
    server.faults["/text-00004.tar"] = list(faults)
    shard = read_list(served.list, ShardCache(tmp_path / "cache", PLENTY))[4][0]
    with pytest.raises(RemoteShardProblem, match=rf"{server.url}/text-00004\.tar: cannot be fetched.*{told}"):
        shard.open()
    assert len(server.requests("/text-00004.tar")) == tries
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_silent_server_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar"
        with pytest.raises(RemoteShardProblem, match=r"a\.tar: cannot be fetched in 5 tries .*check that its address"):
            remote.fetch_file(address, tmp_path / "a.tar")


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_shard_of_the_same_size_but_another_digest_is_refused(served, server, tmp_path, algorithm):
    changed = bytearray(server.files["/text-00004.tar"])
    if algorithm == "md5":  # as wids writes it
        served.entries[4]["md5sum"] = hashlib.md5(changed).hexdigest()
        del served.entries[4]["sha256"]
        write_list(served.list, served.entries)
    changed[600] ^= 1
    server.files["/text-00004.tar"] = bytes(changed)
    with pytest.raises(RemoteShardProblem, match=rf"text-00004\.tar.*its {algorithm} is \w+, the shard list says \w+"):
        ids(mixture([served.list], tmp_path / "cache"))


def test_signatures_and_keys_in_addresses_are_not_told(served, server, tmp_path):
    signed = [one | {"url": f"{one['url']}?X-Amz-Signature=verysecret"} for one in served.entries]
    server.files.clear()
    shard = read_list(write_list(served.list, signed), ShardCache(tmp_path / "cache", PLENTY))[0][0]
    with pytest.raises(RemoteShardProblem) as problem:
        shard.open()
    assert "text-00000.tar" in str(problem.value) and "verysecret" not in str(problem.value)


def test_a_shard_with_another_number_of_documents_than_listed_stops_the_training(served, tmp_path):
    served.entries[4]["nsamples"] = 4
    with pytest.raises(MixtureProblem, match=r"text-00004\.tar has 3 documents, and had 4 .*text\.json; bring"):
        ids(mixture([write_list(served.list, served.entries)], tmp_path / "cache"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        ("[]", 'has no list "shardlist"'),
        ('{"shardlist": []}', 'has no list "shardlist"'),
        ('{"shardlist": [{"nsamples": 3}]}', r'shardlist\[0\]: needs a "url"'),
        ('{"shardlist": [{"url": "http://x/a.tar", "nsamples": 3}]}', '"filesize" of http://x/a.tar is no positive'),
        ('{"shardlist": [{"url": "reference::http://x/a.tar"}]}', "not read from reference::http://x/a.tar, but from"),
        ('{"shardlist": [{"url": "ssh://x/a.tar", "nsamples": 3}]}', "not read from ssh://x/a.tar, but from"),
        ('{"shardlist": [{"url": "a.tar", "nsamples": true}]}', '"nsamples" of a.tar is no positive'),
        ('{"shardlist": [{"url": "a.tar", "nsamples": 3, "sha256": "F"}]}', '"sha256" of a.tar is no digest'),
        ('{"shardlist": [{"url": "a.tar", "nsamples": 3}, {"url": "a.tar", "nsamples": 3}]}', "a.tar is listed twice"),
    ],
)
def test_a_list_that_cannot_be_used_is_named_with_its_entry(tmp_path, content, told):
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(RemoteShardProblem, match=rf"pairs\.json: .*{told}"):
        read_list(tmp_path / "pairs.json", ShardCache(tmp_path, 1))


# ---- the Hub and S3 ------------------------------------------------------------------------------------------------


def test_shards_of_the_hub(served, server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.hub["datasets/lab/pages"] = {f"text/{path.name}": path.read_bytes() for path in served.local}
    where = f"hf://datasets/lab/pages@{loopback.COMMIT}/text"
    entries = [entry(f"{where}/{path.name}", path.read_bytes(), 3) for path in served.local]
    listed = write_list(tmp_path / "hub.json", entries)
    assert ids(mixture([listed], tmp_path / "cache")) == ids(mixture(served.local, tmp_path / "none"))
    entries[4]["url"] = f"{where}/text-77777.tar"
    shard = read_list(write_list(listed, entries), ShardCache(tmp_path / "other", PLENTY))[4][0]
    with pytest.raises(RemoteShardProblem, match=r"text-77777\.tar: cannot be fetched \(.*correct its address"):
        shard.open()


def test_shards_in_an_object_store(served, tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3", reason="the optional package moto[s3] is not installed")
    moto = pytest.importorskip("moto.server", reason="the optional package moto, with its server, is not installed")
    pytest.importorskip("s3fs", reason="the optional package s3fs is not installed")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = moto.ThreadedMotoServer("127.0.0.1", 0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="lab")
        for path in served.local:
            client.upload_file(str(path), "lab", f"set/{path.name}")
        entries = [entry(f"s3://lab/set/{path.name}", path.read_bytes(), 3) for path in served.local]
        listed = write_list(tmp_path / "s3.json", entries)
        assert ids(mixture([listed], tmp_path / "cache")) == ids(mixture(served.local, tmp_path / "none"))
        client.delete_object(Bucket="lab", Key="set/text-00004.tar")
        shard = read_list(listed, ShardCache(tmp_path / "other", PLENTY))[4][0]
        with pytest.raises(RemoteShardProblem, match=r"s3://lab/set/text-00004\.tar: cannot be .*correct its address"):
            shard.open()
    finally:
        store.stop()


# ---- from the list to a training -----------------------------------------------------------------------------------


def test_shards_are_listed_by_path_or_address(served, server, tmp_path, capsys):
    out = tmp_path / "out" / "text.json"
    paths = [str(path) for path in served.local]
    cli.main(["list-shards", *paths, "--base", server.url, "--out", str(out)])
    assert "20 shards, 60 documents" in capsys.readouterr().out
    assert json.loads(out.read_text())["shardlist"] == served.entries
    cli.main(["list-shards", server.url + "/text-{00000..00019}.tar", "--out", str(out)])
    assert json.loads(out.read_text())["shardlist"] == served.entries
    cli.main(["list-shards", *paths, "--out", str(out)])
    assert [one["url"] for one in json.loads(out.read_text())["shardlist"]] == paths
    with pytest.raises(SystemExit, match=r"dreamllm list-shards: .*text-00020\.tar: cannot be fetched"):
        cli.main(["list-shards", f"{server.url}/text-00020.tar", "--out", str(out)])


def source() -> Source:
    about = {"title": "mine", "availability": "own", "source": "own files", "licence": "private"}
    return Source.model_validate(about | {"format": "shard_list"})


def test_a_folder_with_a_list_becomes_a_set(served, tmp_path):
    raw = tmp_path / "mine"
    raw.mkdir()
    (raw / "anything.json").write_bytes(served.list.read_bytes())
    settings = SourceSettings(path=str(raw), format="shard_list", licence="private")
    assert build("web", source(), settings, tmp_path / "out", raw=raw).documents == 60
    assert trainer.find_shard_sets({"web": 1.0}, [tmp_path / "out"]) == {"web": [tmp_path / "out" / "web.json"]}
    assert (tmp_path / "out" / "web.json").read_bytes() == served.list.read_bytes()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["documents"], report["shards"]) == (60, 20)
    with pytest.raises(BuildProblem, match="remove documents from its settings"):
        build("web", source(), settings.model_copy(update={"documents": 5}), tmp_path / "out", raw=raw)
    write_list(raw / "anything.json", [{"url": "a.tar", "nsamples": 3}])
    with pytest.raises(BuildProblem, match=r"a\.tar has a relative path; write addresses or absolute paths"):
        build("web", source(), settings, tmp_path / "out", raw=raw)
    (raw / "another.json").write_text("{}")
    with pytest.raises(BuildProblem, match="format shard_list needs one file"):
        build("web", source(), settings, tmp_path / "out", raw=raw)
    assert "shard_list" in readers.NAMES


def test_a_training_on_listed_shards_has_the_losses_of_one_on_the_disk(server, tmp_path):
    world = test_train.write_world(tmp_path / "world")
    listed = tmp_path / "listed"
    listed.mkdir()
    for name in ("pairs", "stories", "instructions", "text"):
        local = shards.find(world / "data" / name)
        server.files |= {f"/{path.name}": path.read_bytes() for path in local}
        write_list(listed / f"{name}.json", [entry(f"{server.url}/{p.name}", p.read_bytes(), 4) for p in local])
    settings = test_train.experiment(steps=3)
    settings = settings.model_copy(
        update={"machine": settings.machine.model_copy(update={"shard_cache": str(tmp_path / "cache")})}
    )
    here = test_train.run(world, tmp_path / "here", settings)
    there = test_train.run(world, tmp_path / "there", settings, data=[listed])
    assert (there / "losses.csv").read_bytes() == (here / "losses.csv").read_bytes()
    found, wanted = (load_file(folder / "trained.safetensors") for folder in (there, here))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    about = json.loads((there / "checkpoint.json").read_text())["data"]
    assert about["pairs"] == {"pairs.json": hashlib.sha256((listed / "pairs.json").read_bytes()).hexdigest()}


def test_pictures_of_a_list_are_not_encoded_in_advance(tmp_path):
    with pytest.raises(FeatureCacheProblem, match="'web' is a shard list.*set precompute to false"):
        feature_cache.build(tmp_path, None, None, {"web": [tmp_path / "web.json"]}, "joint", None)


def test_pictures_of_listed_shards_are_those_of_the_disk(server, tmp_path):
    local = shards.write((tiny.pair(n) for n in range(4)), tmp_path / "local" / "text", per_shard=2)
    server.files |= {f"/{path.name}": path.read_bytes() for path in local}
    entries = [entry(f"{server.url}/{path.name}", path.read_bytes(), 2) for path in local]
    listed = mixture([write_list(tmp_path / "text.json", entries)], tmp_path / "cache")
    found = [shards.load(listed.record("text", draw)[0]) for draw in range(4)]
    wanted = {document.id: document for document in shards.read(local)}
    assert len(wanted) == 4
    for document in found:
        assert document.pictures[0].tobytes() == wanted[document.id].pictures[0].tobytes()
        assert re.fullmatch(r"pair \d", document.id)
