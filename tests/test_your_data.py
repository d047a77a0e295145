"""docs/your-data.md: its walk from ten images to answers is executed, its examples of configuration are read."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import repository
import tiny
from dreamllm import cli
from dreamllm.config.reading import load
from dreamllm.data import shards
from dreamllm.evaluate import predictions, tasks
from dreamllm.evaluate.placing import place
from dreamllm.sources import manifest

PAGE = (repository.ROOT / "docs/your-data.md").read_text(encoding="utf-8")
WALK = PAGE.partition("## Ten minutes")[2].partition("\n## ")[0]
SFT, MINE = "results/checkpoints/embedded/sft", "results/checkpoints/embedded/mine"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def test_the_configuration_of_the_walk_continues_the_default_run():
    """World, foundations, model and earlier stages are the same, so nothing of the default run is repeated."""
    default, own = (load(repository.ROOT / f"config/{name}.yaml") for name in ("embedded", "own_data"))
    for key in ("name", "seed", "seeds", "precision", "world", "foundations", "model"):
        assert getattr(own, key) == getattr(default, key), key
    assert {name: default.stages.get(name) for name in own.stages if name != "mine"} == {
        name: stage for name, stage in own.stages.items() if name != "mine"
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout after a default run: tiny foundations, a few documents of the world, the checkpoint `sft`."""
    for name in ("config/own_data.yaml", "data/sources.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository.ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    tiny.foundations("data/foundations")
    for name in ("instructions", "questions", "pairs"):
        shards.write(
            [tiny.conversation(n) if name != "pairs" else tiny.pair(n) for n in (1, 2)], f"data/emoji/train/{name}"
        )
    return tmp_path


def small(config: Path) -> None:
    """Make the stages of a configuration so small that a test trains them, and let `sft` start from the foundations."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["stages"] = {name: content["stages"][name] for name in ("sft", "mine")}
    content["stages"]["sft"] |= {"init": [], "mixture": {"pairs": 1}, "steps": 1, "rows_per_batch": 1}
    content["stages"]["mine"] |= {"steps": 2, "rows_per_batch": 2}
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def test_the_walk_from_ten_images_to_answers(folder: Path, capsys: pytest.CaptureFixture):
    """Each block as it is; what Snakemake would run is run in this process, on tiny models."""
    for code in blocks(WALK, "python"):
        exec(compile(code, "docs/your-data.md", "exec"), {})
    assert len(list(Path("data/mine").glob("*.png"))) == 10
    copied, trained, asked = "".join(blocks(WALK, "bash")).splitlines()

    assert shlex.split(copied)[0] == "cp"
    shutil.copy(*shlex.split(copied)[1:])
    assert shlex.split(trained) == ["snakemake", "--cores", "all", "--configfile=config/mine.yaml", MINE]
    small(Path("config/mine.yaml"))
    common = ["--config", "config/mine.yaml", "--foundations", "data/foundations", "--work", "scratch/work"]
    sets = ["data/emoji/train", "data/sources/mine/shards"]
    cli.main(["train", "--stage", "sft", *common, "--data", sets[0], "--out", SFT])
    built = ["--source", "mine", "--config", "config/mine.yaml", "--raw", "data/mine"]
    cli.main(["build-shards", *built, "--out", "data/sources/mine/shards"])
    report = json.loads(Path("data/sources/mine/shards/report.json").read_text())
    assert (report["documents"], report["records left out"]) == (20, {})
    cli.main(["train", "--stage", "mine", *common, "--data", *sets, "--init", SFT, "--out", MINE])
    assert json.loads(Path(f"{MINE}/checkpoint.json").read_text())["data"].keys() == {
        "mine",
        "instructions",
        "questions",
    }

    program, *words = shlex.split(asked)
    assert program == "dreamllm"
    capsys.readouterr()
    cli.main([*words, "--max-new-tokens", "4"])
    assert len(capsys.readouterr().out.splitlines()) == len(words) - words.index("data/mine/pizza.png") - 1 == 2


def test_own_questions_and_prompts_are_predicted_and_scored(folder: Path):
    """With their own wording, and without real images for the prompts."""
    config = Path("config/mine.yaml")
    shutil.copy("config/own_data.yaml", config)
    small(config)
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["sources"] |= {
        name: {"path": f"test/{name}", "format": format, "licence": "private"}
        for name, format in (("asked", "vqa"), ("drawn", "prompts"))
    }
    wording = {"system": "Look.", "instruction": "One word."}
    content["benchmarks"] = {
        "my_questions": {"task": "vqa", "source": "asked", "wording": wording},
        "my_prompts": {"task": "draw", "source": "drawn"},
    }
    content["evaluations"] = [{"model": "sft", "benchmarks": ["my_questions", "my_prompts"]}]
    content["evaluation"] = {"text": {"max_new_tokens": 3}, "drawing": {"steps": 2}}
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for name in ("asked", "drawn"):
        (folder / "test" / name).mkdir(parents=True)
    questions, annotations = blocks(PAGE, "json")
    Path("test/asked/questions.json").write_text(questions)
    Path("test/asked/annotations.json").write_text(annotations)
    tiny.picture().save("test/asked/1.jpg")
    Path("test/drawn/prompts.txt").write_text("a red cat\ntwo dogs\n")
    common = ["--config", "config/mine.yaml", "--foundations", "data/foundations"]
    train = ["--data", "data/emoji/train", "--out", SFT, "--work", "scratch/work"]
    cli.main(["train", "--stage", "sft", *common, *train])
    for benchmark, source, suffix in (("my_questions", "asked", "jsonl"), ("my_prompts", "drawn", "tar")):
        placed, out = f"data/benchmarks/{source}", f"out/{benchmark}.{suffix}"
        flags = ["--config", "config/mine.yaml", "--raw", f"test/{source}", "--out", placed]
        cli.main(["place-benchmark", "--source", source, *flags])
        of = ["--benchmark", benchmark, *common, "--benchmarks", placed]
        cli.main(["predict", "--model", "sft", "--split", "test", *of, "--checkpoints", SFT, "--out", out])
        flags = ["--predictions", out, "--out", f"out/{benchmark}.json", "--items", f"out/{benchmark}.items.json"]
        cli.main(["score", *of, *flags, "--judgements", "scratch/judgements"])
    answered = predictions.read(Path("out/my_questions.jsonl"))
    assert answered.get("1", "prompt", str) == "Look. <image> what is this? One word."
    metrics = json.loads(Path("out/my_questions.json").read_text())
    assert metrics["metrics"]["accuracy"]["n"] == 1
    assert metrics["protocol"]["benchmark"]["wording"]["system"] == "Look."
    drawn = predictions.read(Path("out/my_prompts.tar"))
    assert [drawn.get(id_, "prompt", str) for id_ in ("1", "2")] == ["a red cat", "two dogs"]
    assert drawn.image(drawn.get("2", "image", str), "item 2").size == (16, 16)
    fid = json.loads(Path("out/my_prompts.json").read_text())["metrics"]["fid"]
    assert fid["value"] is None and "no real images to compare with" in fid["reason"]


def test_the_examples_of_configuration_are_valid(tmp_path: Path):
    config = yaml.safe_load((repository.ROOT / "config/own_data.yaml").read_text(encoding="utf-8"))
    for text in blocks(PAGE, "yaml"):
        example = yaml.safe_load(text)
        for key in ("sources", "benchmarks"):
            config[key] = config.get(key, {}) | example.get(key, {})
        for name, stage in example.get("stages", {}).items():
            config["stages"][name] |= stage
        config["evaluations"] = example.get("evaluations", config["evaluations"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    experiment = load(tmp_path / "mine.yaml")
    tasks.check(experiment, "mine.yaml")
    sources = manifest.of_experiment(experiment, repository.ROOT / manifest.MANIFEST)
    for use in experiment.benchmarks.values():
        assert manifest.TASKS[sources[use.source].format] == use.task


def test_every_format_is_in_a_table_of_the_page():
    from typing import get_args

    from dreamllm.config.sources import OwnFormat

    assert not [name for name in get_args(OwnFormat) if f"| `{name}` |" not in PAGE]


def test_the_smallest_benchmark_of_the_page_is_read(tmp_path: Path):
    questions, annotations = blocks(PAGE, "json")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/questions.json").write_text(questions)
    (tmp_path / "raw/annotations.json").write_text(annotations)
    tiny.picture().save(tmp_path / "raw/1.jpg")
    about = {"title": "mine", "availability": "own", "source": "own files", "format": "vqa"}
    place(manifest.Source.model_validate(about), tmp_path / "raw", (), tmp_path / "out")
    (item,) = tasks.load("vqa", tmp_path / "out", "test")
    assert item.question == "what is this?" and set(item.answers) == {"a penguin"}
