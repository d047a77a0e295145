"""The command line: quick help, lazy verbs, clear errors, and the page that `generate` writes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import tiny
from dreamllm import cli
from dreamllm.data.document import Document, Picture, Text
from dreamllm.emoji import grammar
from dreamllm.evaluate import demo_page
from dreamllm.model.generate import Continuation
from dreamllm.output_paths import file_to_write, folder_to_write
from dreamllm.train import checkpoint

HEAVY = {"torch", "transformers", "diffusers", "scipy", "matplotlib", "pandas", "rocrate", "pyarrow", "accelerate"}
WRITES = (file_to_write, folder_to_write)


def test_help_names_every_verb_and_loads_nothing_heavy():
    code = "import sys; from dreamllm.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {verb} " in finished.stdout for verb in cli.VERBS)
    for heavy in ("torch", "transformers", "diffusers", "numpy", "pydantic"):
        assert f"'{heavy}'" not in finished.stdout


def test_help_of_every_verb_loads_no_heavy_library():
    code = """if True:
        import sys
        from dreamllm import cli
        for verb in cli.VERBS:
            try:
                cli.main([verb, "--help"])
            except SystemExit as finished:
                assert not finished.code
            loaded = HEAVY & set(sys.modules)
            assert not loaded, f"dreamllm {verb} --help loads {loaded}"
    """.replace("HEAVY", str(HEAVY))
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert all(f"usage: dreamllm {verb} " in finished.stdout for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_flags_and_help(verb):
    module = import_module(cli.VERBS[verb][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.main) and module.__doc__


def test_an_unknown_verb_is_an_error_that_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["trian"])
    assert stopped.value.code == 2
    assert "'trian'" in capsys.readouterr().err


def test_wrong_input_is_one_line_and_a_bug_is_a_traceback(monkeypatch):
    flags = ["generate", "<image>", "--foundations", "f", "--checkpoints", "c", "--out", "o"]
    with pytest.raises(SystemExit, match="dreamllm generate: the text has 1 <image> placeholders, but 0 pictures"):
        cli.main(flags)
    with pytest.raises(SystemExit, match="dreamllm generate: no-such-file.png: .*No such file"):
        cli.main([*flags, "--image", "no-such-file.png"])
    monkeypatch.setattr(demo_page, "main", lambda arguments: int("a bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(flags)


def test_prompts_may_follow_the_pictures_and_checkpoints(monkeypatch):
    seen = []
    monkeypatch.setattr(demo_page, "main", seen.append)
    cli.main(["generate", "--image", "a.png", "--image", "b.png", "--checkpoints", "c", "<image> and <image>", "2"])
    [arguments] = seen
    assert arguments.prompts == ["<image> and <image>", "2"]
    assert [path.name for path in arguments.image] == ["a.png", "b.png"]
    assert [path.name for path in arguments.checkpoints] == ["c"]


def test_the_page_holds_text_pictures_and_the_reason_for_stopping(tmp_path):
    prompt = Document("p", "interleaved", (Text("A <ship> & more"), Picture(tiny.picture(1))))
    drawn = [Picture(tiny.picture(2)), Text("It ends."), Picture(tiny.picture(3))]
    made = [Continuation(prompt, tuple(drawn), "context")]
    demo_page.save(made, [7], {"model": "<b>", "top_k": 3}, tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text()
    assert "seed 7; stopped where" in text and "model &lt;b&gt;; top k 3" in text
    assert "prefers-color-scheme: dark" in text
    assert "A &lt;ship&gt; &amp; more" in text and "It ends." in text and "the context was full" in text
    assert text.count("data:image/png;base64,") == 3
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["1-1.png", "1-2.png", "index.html"]
    assert Image.open(tmp_path / "page" / "1-2.png").tobytes() == tiny.picture(3).tobytes()


def test_generate_writes_a_page_for_its_prompts(monkeypatch, tmp_path, capsys):
    model, processor = tiny.build()
    monkeypatch.setattr(checkpoint, "load_model", lambda foundations, checkpoints: (model, processor))
    tiny.picture(1).save(tmp_path / "cat.png")
    flags = ["--foundations", "f", "--checkpoints", "c", "--out", str(tmp_path / "page"), "--image"]
    flags += [str(tmp_path / "cat.png"), "--max-new-tokens", "5", "--steps", "2"]
    cli.main(["generate", "Draw two dogs.", "What is <image> ?", *flags])
    text = (tmp_path / "page" / "index.html").read_text()
    assert text.count("<article>") == 2 and "Draw two dogs." in text
    assert "seed 0; " in text and "seed 1; " in text
    assert "model c; DreamLLM" in text and "max new tokens 5; " in text and "steps 2; guidance 3.0" in text
    assert capsys.readouterr().out.strip().endswith("index.html")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("make-world --config config/smoke.yaml --out {file}/world", "cannot be made, because {file} is a file"),
        ("fetch-source --source pope --out {file}/raw", "cannot be made, because {file} is a file"),
        (
            "build-shards --source llava_pretrain --raw {folder}/none --out {folder}/o",
            "{folder}/none: no such folder; `dreamllm fetch-source` makes",
        ),
        ("fetch-foundations --describe {folder}/none", "{folder}/none: no such file or folder"),
        ("generate hi --foundations {folder} --checkpoints {folder}", "{folder}: not a checkpoint, it has no "),
        ("generate hi --temperature -1", "temperature is -1.0, not a number from 0"),
        ("generate hi --steps 0", "steps is 0, at least 1 is needed"),
        ("score-pictures --features {folder} --statistics {file} --out {folder}/m", "is no features file"),
        ("finetune-sd --config config/smoke.yaml --foundations {folder} --data {folder} --out {folder}/o", "shard set"),
        ("train-foundation --part llm --config config/paper.yaml --out {folder}/o", "foundations.llm has no recipe"),
        ("figures --losses a --benchmarks {folder} --out {folder}/o", "--losses, a: should be STAGE=FILE"),
        ("tables --items {folder}/none --paper paper --out {folder}/o", "{folder}/none: no such folder"),
        ("fetch-released --manifest {folder} --name a --out {folder}/o", "Is a directory"),
        (
            "train --stage sft --config config/smoke.yaml --foundations f --data d --out {file} --work w",
            "{file}: is a file",
        ),
        ("finetune-sd --config config/smoke.yaml --foundations f --data {folder} --out {file}", "{file}: is a file"),
        (
            "make-world --config config/smoke.yaml --out {file}",
            "{file}: is a file, but a folder is to be written there",
        ),
    ],
)
def test_what_was_given_wrongly_is_told_in_one_line(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    (tmp_path / "file").write_text("text")
    names = {"file": tmp_path / "file", "folder": tmp_path}
    with pytest.raises(SystemExit) as end:
        cli.main([word.format(**names) for word in arguments.split()])
    assert told.format(**names) in str(end.value.code) and "\n" not in str(end.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_an_output_onto_something_of_another_kind_is_refused_before_any_work(verb, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    module = import_module(cli.VERBS[verb][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    monkeypatch.setattr(module, "main", lambda arguments: pytest.fail("it ran"))
    (tmp_path / "file").write_text("text")
    required = [action for action in parser._actions if action.required and action.option_strings]
    given = {action.option_strings[0]: str((action.choices or ["1"])[0]) for action in required}
    positional = ["1" for action in parser._actions if not action.option_strings]
    written = {action.option_strings[0]: action.type for action in parser._actions if action.type in WRITES}
    assert written or "--out" not in parser.format_help()
    for flag, kind in written.items():
        there = tmp_path if kind is file_to_write else tmp_path / "file"
        for path in (there, tmp_path / "file/below"):
            values = [word for pair in (given | {flag: str(path)}).items() for word in pair]
            with pytest.raises(SystemExit, match=rf"^dreamllm {verb}: {path}: [^\n]*(folder|file)[^\n]*$"):
                cli.main([verb, *positional, *values])
    assert (tmp_path / "file").read_text() == "text"


def test_a_fresh_checkout_is_told_to_run_make_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit, match=r"no such file or folder; run `make tables` first: [^\n]*$"):
        cli.main(["generate", "draw a red cat on grass."])
    for folder in ("data/foundations", "results/checkpoints/embedded/sft"):  # other reasons get no such advice
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"embedded/sft: not a checkpoint, it has no checkpoint.json$"):
        cli.main(["generate", "draw a red cat on grass."])


def test_the_words_of_the_emoji_world_are_those_of_its_scenes(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "--words"])
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert "cat (kitten)" in lines[0] and "red (scarlet)" in lines[1] and "on grass (on the lawn)" in lines[2]
    prompts = [line.strip().removeprefix("draw ") for line in lines if line.startswith("  draw ")]
    assert len(prompts) == 3 and all(grammar.caption(grammar.parse_caption(prompt)) == prompt for prompt in prompts)


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_verb_quietly(buffered):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dreamllm", "generate", "--words"]
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(write)
    assert not done.stderr and done.returncode in (0, 141)


def test_a_connection_that_breaks_is_no_closed_output(monkeypatch):
    def main(arguments):
        raise BrokenPipeError("of a server")

    monkeypatch.setattr(demo_page, "main", main)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(BrokenPipeError, match="of a server"):
        cli.main(["generate", "hi"])


@pytest.mark.parametrize("kind", ["AutoTokenizer", "AutoImageProcessor", "AutoConfig", "AutoModel"])
def test_a_part_of_a_foundation_that_cannot_be_loaded_is_named(kind, tmp_path):
    import transformers

    from dreamllm.model.weights import FoundationProblem, load_part

    with pytest.raises(FoundationProblem, match="none: no such folder"):
        load_part(getattr(transformers, kind), tmp_path / "none")
    for content in (None, "{", "[]", '{"model_type": "nosuch"}', "\xff"):
        if content is not None:
            for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
                (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(FoundationProblem, match=f"{tmp_path.name}: {kind} cannot be loaded") as told:
            load_part(getattr(transformers, kind), tmp_path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}],
    ids="-".join,
)
def test_texts_and_names_are_utf8_in_any_locale(tmp_path, locale):
    """A verb prints, writes, names files and reads what programs print, as if the locale were UTF-8."""
    verb = """
        import subprocess, sys
        from pathlib import Path
        def add_arguments(parser):
            parser.add_argument("path", type=Path)
        def main(arguments):
            Path("Zürich.txt").write_text("größer →")
            said = subprocess.run(["cat", "Zürich.txt"], capture_output=True, text=True).stdout
            print(said == "größer →", arguments.path.name == "é.json", "0.5 → 0.6")
    """
    (tmp_path / "printing.py").write_text(textwrap.dedent(verb), encoding="utf-8")
    program = "from dreamllm import cli; cli.VERBS['compare'] = ('printing', ''); cli.main()"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment = kept | locale | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", program, "compare", "é.json"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    arrow = r"\u2192" if "PYTHONIOENCODING" in locale else "→"
    assert (result.stdout.decode(), result.returncode) == (f"True True 0.5 {arrow} 0.6\n", 0), result.stderr.decode()
    assert (tmp_path / "Zürich.txt").read_text(encoding="utf-8") == "größer →"
