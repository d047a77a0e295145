"""The rules for public data sets: the plan of an experiment that uses them, and a whole run against a local server."""

from __future__ import annotations

import re
import shutil
import stat
import sys
from pathlib import Path

import pytest

import formats
import loopback
import repository
from dreamllm.data import shards
from dreamllm.sources import manifest

CONFIG = """
name: real
foundations: {source: fetch, md5: "00000000000000000000000000000000.dir", sha256: "%s"}
sources:
  llava_pretrain: {}
  laion_coco: {candidates: 2000, documents: 1000}
  mmc4_core: {candidates: 1000, min_similarity: 0.25}
  instruct_blip_laion: {documents: 100}
  llava_instruct_665k: {folder: data/sources/llava_small, documents: 500}
  coco_karpathy: {}
  mm_vet: {}
benchmarks:
  okvqa: {task: vqa, source: okvqa}
  okvqa_4: {task: vqa, source: okvqa, shots: [0, 4], shots_from: okvqa_train, shots_by: similarity}
  vqav2_test: {task: vqa, source: vqav2_test}
  exam: {task: mmbench, source: mmbench_test}
  coco_fid: {task: draw, source: coco_fid}
  boolq: {task: harness, source: boolq, harness_task: boolq}
evaluations:
  - {model: sft, benchmarks: [captions, okvqa, okvqa_4, vqav2_test, exam, coco_fid, boolq]}
stages:
  align: &stage
    trains: [visual_projector]
    mode: comprehension
    mixture: {llava_pretrain: 1, laion_coco: 2}
    loss_weights: {language: 1, diffusion: 0}
    steps: 2
    rows_per_batch: 2
    context: 512
    learning_rate: 2.0e-3
  pretrain:
    <<: *stage
    init: [align]
    mixture: {mmc4_core: 1, text: 1}
  sft:
    <<: *stage
    init: [pretrain]
    mixture: {llava_instruct_665k: 1, instruct_blip_laion: 1}
""" % ("0" * 64)

IMG2DATASET = '''#!{python}
"""Stands in for img2dataset: the same arguments and files, one shard, no resizing."""
import gzip, json, sys, urllib.request
sys.path.insert(0, {tests!r})
from pathlib import Path
import formats
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
samples = []
for number, line in enumerate(gzip.open(flags["--url_list"])):
    row = json.loads(line)
    try:
        picture = urllib.request.urlopen(row["url"]).read()
    except OSError:
        continue
    samples.append((f"{{number:09d}}", row["url"], row.get("caption", ""), picture))
formats.img2dataset(Path(flags["--output_folder"]) / "00000.tar", samples)
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = repository.copy(tmp_path_factory.mktemp("sources") / "checkout")
    (folder / "config/real.yaml").write_text(CONFIG)
    return folder


def refused(checkout: Path, old: str, new: str) -> str:
    assert old in CONFIG
    (checkout / "config/wrong.yaml").write_text(CONFIG.replace(old, new, 1))
    return repository.run(checkout, "snakemake", "-n", "--configfile=config/wrong.yaml", "sources", check=False).stdout


def test_the_manifest_is_complete_and_every_set_is_in_the_docs():
    sources = manifest.load(repository.ROOT / manifest.MANIFEST)
    page = (repository.ROOT / "docs/sources.md").read_text(encoding="utf-8")
    assert not [name for name in sources if f"`{name}`" not in page]


def test_stages_wait_for_the_sets_of_their_mixtures(checkout):
    found = _jobs(checkout)
    jobs = {rule: (inputs, outputs) for rule, inputs, outputs in found}
    assert set(jobs["train_align"][0]) >= {"data/sources/llava_pretrain/shards", "data/sources/laion_coco/shards"}
    assert "data/emoji/train" not in jobs["train_align"][0]
    assert set(jobs["train_pretrain"][0]) >= {"data/emoji/train", "data/sources/mmc4_core/shards"}
    wanted = {"data/sources/llava_small/shards", "data/sources/instruct_blip_laion/shards"}
    assert set(jobs["train_sft"][0]) >= wanted
    assert jobs["write_instruct_blip_laion"][0] == ["data/sources/blip_laion/shards"], "its base comes along"
    assert set(jobs["build_llava_instruct_665k"][0]) > {"data/raw/coco_train2017", "data/raw/visual_genome"}
    pictures = ["data/raw/coco_karpathy", "data/raw/coco_val2014"]
    assert ("place_benchmark", pictures, ["data/benchmarks/coco_karpathy"]) in found
    assert ("fetch_source", [], ["data/raw/laion_coco"]) in found
    chain = ["list_urls_laion_coco", "fetch_pictures_laion_coco", "build_laion_coco"]
    assert set(chain) <= jobs.keys()
    assert "fetch_pictures_llava_pretrain" not in jobs


def test_evaluations_wait_for_the_public_sets_that_they_name(checkout):
    found = repository.jobs(checkout, "--configfile=config/real.yaml", "results/tables")
    made = {path: (rule, inputs) for rule, inputs, outputs in found for path in outputs}
    predictions, metrics = "results/predictions/real/sft", "results/metrics/real/sft"
    assert "data/benchmarks/okvqa" in made[f"{predictions}/okvqa.jsonl"][1]
    assert "data/emoji/benchmarks" not in made[f"{predictions}/okvqa.jsonl"][1]
    assert {"data/benchmarks/okvqa", "data/benchmarks/okvqa_train"} <= {*made[f"{predictions}/okvqa_4.jsonl"][1]}
    assert "data/emoji/benchmarks" in made[f"{predictions}/captions.jsonl"][1]
    assert made[f"{predictions}/coco_fid.tar"][0] == "predict_pictures"
    assert {f"{metrics}/boolq.json", f"{metrics}/exam.json"} <= made.keys()
    assert made["data/benchmarks/boolq"][0] == "place_benchmark"
    assert made["data/benchmarks/okvqa_train"][1] == ["data/raw/okvqa_train", "data/raw/coco_train2014"]
    submissions = {path for path in made if path.startswith("results/submissions")}
    assert submissions == {f"results/submissions/real/sft/{name}" for name in ("vqav2_test.json", "exam.xlsx")}
    assert submissions <= {*made["results/tables"][1]}


def _jobs(checkout: Path) -> list[tuple[str, list[str], list[str]]]:
    return repository.jobs(checkout, "--configfile=config/real.yaml", "results/checkpoints/real/sft", "sources")


def test_the_rules_lint_without_findings(checkout):
    assert repository.lint_findings(checkout, "config/real.yaml") == []


def test_wrong_names_are_errors_with_near_matches(checkout):
    assert "no set 'llava_pretrian'; did you mean llava_pretrain" in refused(
        checkout, "  llava_pretrain: {}", "  llava_pretrian: {}\n  llava_pretrain: {}"
    )
    assert "stages.pretrain.mixture: mm_vet is no training set" in refused(checkout, "text: 1}", "mm_vet: 1}")
    assert "benchmarks.exam: mmbench_test is read as mmbench, not vqa" in refused(
        checkout, "task: mmbench", "task: vqa"
    )


def test_a_run_from_the_web_to_shards(checkout, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(checkout, folder, symlinks=True)
    program = folder / ".img2dataset/bin/img2dataset"
    program.parent.mkdir(parents=True)
    program.write_text(IMG2DATASET.format(python=sys.executable, tests=str(Path(__file__).parent)))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    with loopback.serve() as server:
        for n in (10, 20):
            server.files[f"/{n}.jpg"] = formats.jpeg(n)
        pages = [
            formats.mmc4(["One.", "Two."], (f"{server.url}/10.jpg", 0, 0.3), (f"{server.url}/gone.jpg", 1, 0.3)),
            formats.mmc4(["Three."], (f"{server.url}/20.jpg", 0, 0.26), (f"{server.url}/10.jpg", 0, 0.1)),
        ]
        archive = formats.archive(tmp_path / "docs.zip", {"docs_0.jsonl": formats.jsonl(pages)})
        server.files["/docs.zip"] = archive.read_bytes()
        server.faults["/docs.zip"] = [("cut", 300)]
        about = "availability: open, source: test, unknown: all"
        (folder / manifest.MANIFEST).write_text(
            f"pages: {{title: p, format: mmc4, files: [{{url: '{server.url}/docs.zip'}}], {about}}}\n"
            f"asked: {{title: a, format: instructions, written_from: pages, {about}}}\n"
            f"placed: {{title: b, format: as_is, files: [{{url: '{server.url}/10.jpg'}}], {about}}}\n"
        )
        section = "sources:\n  pages: {min_similarity: 0.25, private_hosts: true}\n  asked: {}\n  placed: {}\n"
        (folder / "config/mine.yaml").write_text(re.sub(r"(?s)sources:\n.*", section, CONFIG))
        repository.run(folder, "snakemake", "--cores", "2", "--configfile=config/mine.yaml", "sources")
    documents = list(shards.read(shards.find(folder / "data/sources/pages/shards/pages")))
    assert [len(document.parts) for document in documents] == [3, 2]
    asked = list(shards.read(shards.find(folder / "data/sources/asked/shards/asked")))
    assert [document.kind for document in asked] == ["conversation"] * 2
    assert (folder / "data/benchmarks/placed/10.jpg").read_bytes() == formats.jpeg(10)
    assert (folder / "data/raw/pages.lock.json").exists()
    (folder / "config/mine.yaml").write_text(
        (folder / "config/mine.yaml").read_text() + "machine: {distributor: ray}\n"
    )
    again = repository.run(folder, "snakemake", "-n", "--configfile=config/mine.yaml", "sources")
    assert "Nothing to be done" in again.stdout, "the machine is no part of a result's identity"
