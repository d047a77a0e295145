"""Released weights are fetched at a pinned revision and checked; config/released.yaml scores them without training."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import foundation_card
import loopback
import released
import repository
import tiny
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.digests import digest, md5, sha256_of_file
from dreamllm.emoji.foundations import scene_classifier
from dreamllm.sources.released import fetch, read_entry
from dreamllm.sources.services import http
from dreamllm.sources.services.http import FetchProblem

REPO = "authors/dreamllm"
MANIFEST = repository.ROOT / "paper/released.yaml"


# ---- the manifest --------------------------------------------------------------------------------------------------


def test_every_entry_of_the_manifest_is_complete_or_says_what_is_missing():
    content = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    for name, entry in content.items():
        if entry["revision"] is None:
            with pytest.raises(FetchProblem, match=f"{name} has no revision yet. Look it up on the page of"):
                read_entry(MANIFEST, name)
        else:
            read_entry(MANIFEST, name)
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in entry["sha256"].values()), name
    foundations = load(repository.ROOT / "config/released.yaml").foundations
    assert {foundations.checkpoint, foundations.clip, foundations.sd} <= content.keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"revision": "main"}, "revision is 'main', not a commit"),
        ({"sha256": None}, "sha256 is None"),
        ({"branch": "main"}, "must have exactly the keys"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path, change, told):
    path = tmp_path / "released.yaml"
    entry = {"repo": REPO, "revision": loopback.COMMIT, "patterns": ["*"], "sha256": {}}
    path.write_text(yaml.safe_dump({"a": entry | change}))
    with pytest.raises(FetchProblem, match=re.escape(told)):
        read_entry(path, "a")
    with pytest.raises(FetchProblem, match="no entry 'b'; there are a"):
        read_entry(path, "b")


# ---- fetching ------------------------------------------------------------------------------------------------------


FILES = {
    "config.json": b"{}",
    "dream_embedding.bin": bytes(range(256)) * 400,
    "vae/config.json": b"{ }",
    "README.md": b"not wanted",
}


@pytest.fixture
def server(monkeypatch):
    """A Hub that has the repository."""
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with loopback.serve() as running:
        running.hub[f"models/{REPO}"] = FILES
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def entry(**changes) -> dict:
    return {"repo": REPO, "revision": loopback.COMMIT, "patterns": ["*.json", "*.bin"], "sha256": {}} | changes


def resolved(name: str) -> str:
    return f"/{REPO}/resolve/{loopback.COMMIT}/{name}"


def sha256(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


def test_the_wanted_files_are_downloaded_and_checked(server, tmp_path):
    record = fetch(entry(sha256={"vae/config.json": sha256("vae/config.json")}), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"config.json", "dream_embedding.bin", "vae/config.json", "download.json"}
    assert {name: file["checked"] for name, file in record["files"].items()} == {
        "config.json": "trusted on first download",
        "dream_embedding.bin": "hub",
        "vae/config.json": "manifest",
    }
    assert json.loads((tmp_path / "out/download.json").read_text()) == record
    assert record["files"]["config.json"]["sha256"] == sha256("config.json")
    assert not (tmp_path / f".out.{loopback.COMMIT[:12]}").exists()


def test_a_wrong_digest_is_refused_and_the_file_deleted(server, tmp_path):
    with pytest.raises(FetchProblem, match="dream_embedding.bin: sha256 is .* the manifest says 0000"):
        fetch(entry(sha256={"dream_embedding.bin": "0" * 64}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("dream_embedding.bin"))
    fetch(entry(), tmp_path / "out")
    assert sha256_of_file(tmp_path / "out/dream_embedding.bin") == sha256("dream_embedding.bin")


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.faults[resolved("dream_embedding.bin")] = [("cut", 50_000)]
    fetch(entry(), tmp_path / "out")
    assert len(server.requests(resolved("dream_embedding.bin"))) == 2
    assert sha256_of_file(tmp_path / "out/dream_embedding.bin") == sha256("dream_embedding.bin")


def test_a_failed_download_leaves_nothing_under_its_name_and_is_resumed(server, tmp_path):
    server.faults[resolved("dream_embedding.bin")] = [("status", 404, {"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(FetchProblem, match=f"models/{REPO}@{loopback.COMMIT}: .*Entry Not Found"):
        fetch(entry(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fetch(entry(), tmp_path / "out")
    assert len(server.requests(resolved("config.json"))) == 1
    assert sha256_of_file(tmp_path / "out/dream_embedding.bin") == sha256("dream_embedding.bin")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"revision": "f" * 40}, "models/authors/dreamllm: there is no revision 'ffff"),
        ({"repo": "authors/other"}, "models/authors/other: it does not exist"),
        ({"patterns": ["*.gguf"]}, "no file matches '*.gguf'"),
        ({"sha256": {"x": "0" * 64}}, "x of the manifest is not there"),
    ],
)
def test_what_does_not_exist_is_named(server, tmp_path, change, expected):
    with pytest.raises(FetchProblem, match=re.escape(expected)):
        fetch(entry(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchProblem, match="run the same command again to resume"):
        fetch(entry(), tmp_path / "out")


# ---- the configuration ---------------------------------------------------------------------------------------------

PUBLIC_SETS = ("coco_karpathy", "okvqa", "textvqa", "pope", "mmbench")
WORLD_SIX = ("captions", "vqa", "pope", "draw", "stories", "language")
RELEASED = (repository.ROOT / "config/released.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("stages: [released]", "stages: [releasd]", "no stage 'releasd'; did you mean released?"),
        ("folder: data/foundations_released", "folder: data/foundations", "each of them needs its own"),
        ("checkpoint:", "checkpont:", "foundations.checkpont: unknown key; did you mean checkpoint"),
        ("    md5: ae2dde4219aae634cf18d6cf78c21629.dir\n", "", "foundations.instruments.md5: missing"),
    ],
)
def test_a_wrong_configuration_is_explained(tmp_path, old, new, told):
    assert old in RELEASED
    path = tmp_path / "wrong.yaml"
    path.write_text(RELEASED.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigProblem, match=re.escape(told)):
        load(path)


def test_training_can_go_on_from_the_released_checkpoint(tmp_path):
    stage = {"init": ["released"], "mode": "joint", "mixture": {"pairs": 1}, "steps": 1, "rows_per_batch": 1}
    stage |= {"context": 64, "learning_rate": 1e-3}
    content = yaml.safe_load(RELEASED)
    content["stages"] = {"more": stage | {"trains": ["dream_queries"]}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    assert load(tmp_path / "more.yaml").lineage("more") == ["released", "more"]
    content["stages"]["released"] = content["stages"].pop("more")
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigProblem, match="stages.released: this name is taken"):
        load(tmp_path / "more.yaml")


# ---- the DAG -------------------------------------------------------------------------------------------------------


def test_the_whole_dag_trains_nothing(tmp_path):
    checkout = repository.copy(tmp_path / "checkout")
    planned = repository.planned(checkout, "--configfile=config/released.yaml", "results/tables")
    assert planned == {
        "fetch_released": 3,
        "import_released": 1,
        "fetch_foundations": 1,
        "make_world": 1,
        "fetch_source": len(PUBLIC_SETS) + 1,  # and the pictures of COCO
        "place_benchmark": len(PUBLIC_SETS),
        "predict_text": 11,
        "predict_pictures": 5,
        "score": 16,
        "figures": 1,
        "tables": 1,
    }
    assert repository.lint_findings(checkout, "config/released.yaml") == []


def test_a_tiny_release_is_imported_and_scored(tmp_path):
    """The DAG of config/released.yaml with downloads that are there already, a small world and few steps."""
    checkout = repository.copy(tmp_path / "checkout")
    release = released.write(tmp_path / "release", context=1024)
    content = yaml.safe_load(RELEASED)
    names = content["foundations"] | {"clip": "clip-vit-large-patch14", "sd": "stable-diffusion-2-1-base"}
    for part, name in (("dreamllm", names["checkpoint"]), ("clip", names["clip"]), ("sd", names["sd"])):
        shutil.copytree(release / part, checkout / "data/released" / name)
    instruments = tiny.foundations(tmp_path / "instruments")
    torch.manual_seed(0)
    for part in ("judge", "judge2"):
        scene_classifier.save(scene_classifier.SceneClassifier(48, 4), instruments / part)
    foundation_card.write(instruments)
    content["foundations"]["instruments"] |= put_in_store(instruments, checkout / "data/store")
    content |= {
        "name": "tiny_release",
        "machine": {},
        "model": {"num_dream_queries": 4},
        "benchmarks": {},
        # not sd: tiny Stable Diffusion has no text encoder
        "evaluations": [content["evaluations"][1] | {"benchmarks": [*WORLD_SIX]}],
        "evaluation": {
            "prompts": "official",
            "text": {"num_beams": 2, "max_new_tokens": 4},
            "drawing": {"steps": 2},
            "stories": {"max_new_tokens": 4, "max_pictures": 1},
        },
    }
    content["world"] |= {"benchmarks": {"pictures": 3, "draw": 3, "stories": 2, "language": 2}}
    (checkout / "config/tiny_release.yaml").write_text(yaml.safe_dump(content))
    target = ("--configfile=config/tiny_release.yaml", "results/tables")

    result = repository.run(checkout, "snakemake", "--cores", "2", *target)
    assert "fetch_released" not in result.stdout and "train_" not in result.stdout
    metrics = {path.stem for path in (checkout / "results/metrics/tiny_release/sft").iterdir()}
    assert metrics == {"captions", "vqa", "pope", "draw", "stories", "language"}
    protocol = json.loads((checkout / "results/metrics/tiny_release/sft/draw.json").read_text())["protocol"]
    assert list(protocol["checkpoints"]) == ["released"]
    assert "nothing missing, nothing unexpected" in (checkout / "logs/tiny_release/import_released.log").read_text()
    assert "Nothing to be done" in repository.run(checkout, "snakemake", "--cores", "2", *target).stdout

    content["model"]["num_dream_queries"] = 64
    (checkout / "config/tiny_release.yaml").write_text(yaml.safe_dump(content))
    result = repository.run(checkout, "snakemake", "--cores", "2", *target, check=False)
    assert "set model.num_dream_queries to 4 there" in result.stdout


def put_in_store(folder: Path, where: Path) -> dict[str, str]:
    """Put a folder into a store as DVC does; returns its two digests."""
    listing = []
    for path in folder.rglob("*"):
        if path.is_file():
            listing.append({"md5": md5(path), "relpath": path.relative_to(folder).as_posix()})
            put(path.read_bytes(), md5(path), where)
    listing.sort(key=lambda file: file["relpath"])
    put(json.dumps(listing).encode(), md5(folder), where)
    return {"md5": md5(folder), "sha256": digest(folder)}


def put(content: bytes, name: str, where: Path) -> None:
    path = where / "files/md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
