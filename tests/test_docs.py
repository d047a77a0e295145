"""What the documentation names exists: paths, links, commands with their flags, targets of make and Snakemake, modules.

Documentation is README.md, CONTRIBUTING.md, docs/, the README of every folder, the comments of config/ and the rules,
and the docstrings and comments of all modules.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import import_module, util
from pathlib import Path
from statistics import stdev
from types import ModuleType

import pytest

from dreamllm.cli import VERBS
from dreamllm.config.reading import load
from dreamllm.evaluate import tasks
from dreamllm.results.table_spec import read_tables

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += [*sorted(ROOT.glob("*/README.md")), ROOT / "results/study/README.md"]
PAGES = list(dict.fromkeys(page for page in PAGES if page.is_file()))
WITH_COMMENTS = [
    ROOT / "workflow/Snakefile",
    *sorted(ROOT.glob("workflow/rules/*.smk")),
    *sorted(ROOT.glob("config/*.yaml")),
]
MODULES = [path for folder in ("src", "workflow", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
EXAMPLES = ("config/mine.yaml", "data/mine", "results/checkpoints/mine", "results/mine", "my_benchmark", "mine.py")
EXAMPLES += ("object_recall.py",)
"""Names of what a reader makes."""
FOLDERS = "src|config|workflow|docs|tests|paper|data|results|benchmarks|profiles|scratch|logs|timings"
SUFFIXES = "py|md|yaml|yml|smk|sh|csv|json|lock|toml|html"
NUMBERS = {11: "eleven", 12: "twelve", 13: "thirteen", 14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen"}


def script(name: str) -> ModuleType:
    """A script of workflow/ as a module."""
    spec = util.spec_from_file_location(name, ROOT / f"workflow/{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readme_results, readme_picture = script("readme_results"), script("readme_picture")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def comments(path: Path) -> str:
    """The comment lines of a configuration or a rule file, without their signs."""
    return "\n".join(line[1:] for line in text_of(path).splitlines() if line.startswith("#"))


@cache
def docstrings(path: Path) -> str:
    """All docstrings of a module, those below attributes included, and its comments."""
    nodes = ast.walk(ast.parse(text_of(path)))
    strings = [
        node.value.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    strings += re.findall(r"(?m)^\s*# (.*)$", text_of(path))
    return "\n\n".join(string for string in strings if isinstance(string, str))


def documentation() -> dict[Path, str]:
    """Every text that speaks to a reader, by its file."""
    texts = {page: text_of(page) for page in PAGES}
    texts |= {path: comments(path) for path in WITH_COMMENTS}
    return texts | {path: docstrings(path) for path in MODULES}


# ---- paths and links -------------------------------------------------------------------------------------------------


def is_made(path: str) -> bool:
    """Whether git ignores the path, as it does all that the workflow and a reader's experiments make."""
    asked = ["git", "-C", str(ROOT), "check-ignore", "--quiet", "--no-index", path.rstrip("/") + "/x"]
    return path.startswith(EXAMPLES) or subprocess.run(asked, check=False).returncode == 0


def exists(path: str, near: Path) -> bool:
    """Whether a file or folder of this name is in the project: from its root, beside `near` or in a folder above."""
    places = [ROOT, *(parent for parent in near.parents if parent.is_relative_to(ROOT)), ROOT / "src/dreamllm"]
    return any((place / path).exists() or (place / path).is_symlink() for place in places)


def test_paths_in_the_documentation_exist() -> None:
    missing = []
    for file, text in documentation().items():
        named = re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w/?)(?![\w*{{}}\[\]-]|\.\w)", text)
        named += re.findall(rf"`([\w-][\w./-]*\.(?:{SUFFIXES}))`", text)
        for path in dict.fromkeys(named):
            placeholder = re.search(r"\b[A-Z][A-Z]+\b", path) and path.split("/")[-1] not in ("README.md", "REPORT.md")
            product = "/" not in path and not path.endswith((".py", ".smk", ".sh"))
            if not placeholder and not product and not exists(path, file) and not is_made(path):
                missing.append(f"{file.relative_to(ROOT)}: {path}")
    assert not missing, "these are not in the project:\n" + "\n".join(missing)


def test_modules_in_the_documentation_exist() -> None:
    for file, text in documentation().items():
        for name in re.findall(r"`(dreamllm(?:\.\w+)+)`", text):
            parts = name.split(".")
            path = ROOT / "src"
            while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").is_file()):
                path = path / parts.pop(0)
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            inside = not parts or re.search(rf"(?m)^(?:def |class |async def )?{parts[0]}\b", text_of(source))
            assert inside and len(parts) < 3, f"{file.relative_to(ROOT)}: {name}"


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text_of(page)))
    plain = [re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    names = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in plain}
    return names | set(re.findall(r'<a (?:id|name)="([^"]+)"', text_of(page)))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(page)) + re.findall(
        r'(?:src|srcset|href)="([^"]+)"', text_of(page)
    )
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}; {file.name} has no such heading"


def test_the_index_of_docs_lists_every_page() -> None:
    index = text_of(ROOT / "docs/README.md")
    pages = [page.name for page in sorted(ROOT.glob("docs/*.md")) if page.name != "README.md"]
    assert not [name for name in pages if f"]({name})" not in index]


# ---- commands --------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[tuple[str, bool]]:
    """Commands of a text, each with whether it is whole: those in blocks of code are, unless they have three dots."""
    text = re.sub(r" *\\\n\s*", " ", text)
    program = r"(?:[A-Z_]+=\S+ )*((?:dreamllm|make|snakemake|python -m dreamllm|python \w+/\w+\.py|bash \w+/\w+\.sh)\b"
    fenced = "\n".join(re.findall(r"(?ms)^```(?:bash|sh)\n(.*?)^```", text))
    blocks = re.findall(rf"(?m)^(?: {{2,}}|Usage: ){program}.*)$", text) + re.findall(rf"(?m)^{program}.*)$", fenced)
    whole = [re.split(r"\s{2,}|\s#\s|\s&&\s|`", one)[0] for one in blocks]
    mentioned = [" ".join(one.split()) for one in re.findall(rf"`{program}(?: [^`]*)?)`", text)]
    return [(one, "..." not in one) for one in whole] + [(one, False) for one in mentioned]


ALL_COMMANDS = [
    pytest.param(command, whole, id=f"{file.relative_to(ROOT)}: {command}")
    for file, text in documentation().items()
    for command, whole in dict.fromkeys(commands(text))
]


def of(program: str) -> list:
    return [one for one in ALL_COMMANDS if re.match(rf"{program}\b", one.values[0])]


class Refusal(Exception):
    """argparse refused a command."""


@cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise Refusal(message)

    parser = Parser(prog=verb, allow_abbrev=False)
    import_module(VERBS[verb][0]).add_arguments(parser)
    return parser


@pytest.mark.parametrize(("command", "whole"), of(r"(?:python -m )?dreamllm(?! (?:VERB|is|of))"))
def test_verbs_and_their_flags_exist(command: str, whole: bool) -> None:
    words = shlex.split(command.removeprefix("python -m ").replace("...", ""))[1:]
    if not words or words[0] in ("--help", "--version") or "|" in words[0]:
        return
    assert words[0] in VERBS, f"no verb {words[0]}"
    if "--help" in words:
        return
    parser = parser_of(words[0])
    flags = [word for word in words[1:] if word.startswith("--")]
    assert not [flag for flag in flags if flag not in parser._option_string_actions], f"flags of {words[0]}"
    if whole:
        numbers = [re.sub(r"^[A-Z]$", "1", word) for word in words[1:]]
        parser.parse_args(numbers)


def make_targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z][\w-]*):", text_of(ROOT / "Makefile")))


@pytest.mark.parametrize(("command", "whole"), of("make"))
def test_make_targets_exist(command: str, whole: bool) -> None:
    targets = [word for word in shlex.split(command)[1:] if "=" not in word and not word.startswith(("-", "."))]
    assert not [target for target in targets if target not in {*make_targets(), "TARGET"}]


def rules() -> set[str]:
    """Names of the rules; of those that are made in a loop, with the names of the stages and so on left open."""
    texts = [text_of(path) for path in (ROOT / "workflow/Snakefile", *ROOT.glob("workflow/rules/*.smk"))]
    names = {name for text in texts for name in re.findall(r"(?m)^\s*(?:rule|checkpoint) (\w+):", text)}
    return names | {name for text in texts for name in re.findall(r"(?m)^use rule \w+ as (\w+) with:", text)}


@pytest.mark.parametrize(("command", "whole"), of("snakemake"))
def test_snakemake_commands_name_flags_rules_and_files_that_exist(command: str, whole: bool) -> None:
    from snakemake.cli import get_argument_parser

    parser = get_argument_parser()
    words = shlex.split(command.replace("...", ""))[1:]
    flags = [word.partition("=")[0] for word in words if re.match(r"--\w", word)]
    assert not [flag for flag in flags if flag not in parser._option_string_actions and not flag.startswith("--slurm")]
    if not whole:
        words = [word for word in words if re.match(r"--configfile=|[^-]", word)]
        targets = [word for word in words if re.match(r"(?:results|data)/", word)]
        assert not [target for target in targets if not is_made(target) and not (ROOT / target).exists()]
        return
    parsed, unknown = parser.parse_known_args(words)
    assert not [word for word in unknown if not word.startswith("--slurm") and word != "squeue"]
    for file in parsed.configfile or []:
        assert file.name == "mine.yaml" or (ROOT / file).is_file(), (
            f"--configfile takes {file}: write --configfile=FILE"
        )
    for target in [*(parsed.targets or []), *(parsed.forcerun or []), *(parsed.until or [])]:
        assert target in rules() or target.isupper() or is_made(target), f"no rule and no result {target}"


@pytest.mark.parametrize(("command", "whole"), of(r"(?:python (?!-m)|bash )"))
def test_scripts_and_their_flags_exist(command: str, whole: bool) -> None:
    program, *words = shlex.split(command.replace("...", ""))[1:]
    assert (ROOT / program).is_file()
    flags = [word for word in words if word.startswith("--")]
    assert not [flag for flag in flags if f'"{flag}"' not in text_of(ROOT / program)]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_the_number_of_benchmarks_is_that_of_the_code() -> None:
    page = " ".join(text_of(ROOT / "docs/evaluation.md").split())
    said = re.search(r"The (\w+) benchmarks of the emoji world are ([^.]*)\.", page)
    assert said, "docs/evaluation.md says how many benchmarks the emoji world has, and lists them"
    in_world = [name for name in tasks.NAMES if tasks.about(name).in_world]
    assert said[1] == NUMBERS[len(in_world)]
    assert sorted(re.findall(r"`(\w+)`", said[2])) == in_world


def test_the_number_of_checks_is_that_of_the_audit() -> None:
    from dreamllm.repro.audit.run import CHECKS

    page = text_of(ROOT / "docs/audit.md")
    assert f"{NUMBERS[len(CHECKS)]} checks" in page
    assert re.findall(r"(?m)^\| (A\d\d) \|", page) == list(CHECKS)


@pytest.mark.parametrize(
    ("page", "name", "content"), readme_results.BLOCKS, ids=[name for _, name, _ in readme_results.BLOCKS]
)
def test_numbers_of_the_pages_are_those_of_the_results(page: Path, name: str, content: Callable[[], str]) -> None:
    assert readme_results.between_markers(text_of(page), name) == content(), "python workflow/readme_results.py"


def of_study(seed: int, model: str, benchmark: str) -> dict:
    return json.loads(text_of(ROOT / f"results/study/metrics/study_{seed}/{model}/{benchmark}.json"))


def copy_of_recorded(folder: Path, **protocol: object) -> Path:
    """The recorded run, with these entries in the protocol of every metric."""
    recorded = Path(shutil.copytree(ROOT / "results/recorded", folder / "recorded"))
    for file in (recorded / "metrics").rglob("*.json"):
        content = json.loads(text_of(file))
        content["protocol"] |= protocol
        file.write_text(json.dumps(content))
    return recorded


def test_the_readme_has_every_number_with_its_scatter_over_the_studys_seeds() -> None:
    block = readme_results.default_run(ROOT / "results/study", "study_0")
    exact = [of_study(seed, "sft", "captions")["metrics"]["exact"] for seed in range(5)]
    scatter = stdev(one["value"] * 100 for one in exact)
    assert f"| captions exactly right | {exact[0]['n']} |" in block
    assert f"| **{exact[0]['value'] * 100:.1f}** ± {scatter:.1f} |" in block
    assert "over 5 seeds" in block
    narratives = [of_study(seed, "sft", "narratives")["metrics"]["all"]["value"] * 100 for seed in range(5)]
    assert re.search(rf"from narratives .*\*\*{narratives[0]:.1f}\*\* ± {stdev(narratives):.1f}", block)


def test_scatter_of_other_foundations_and_of_what_the_study_lacks_is_not_shown(tmp_path: Path) -> None:
    other = readme_results.default_run(copy_of_recorded(tmp_path, foundations={"llm": "another"}))
    assert " ± " not in other and "No scatter between seeds" in other
    (tmp_path / "study/metrics").mkdir(parents=True)
    assert " ± " not in readme_results.default_run(study=tmp_path / "study")


def test_the_readme_says_the_machine_of_the_run_and_what_it_did_not_measure(tmp_path: Path) -> None:
    recorded = copy_of_recorded(tmp_path, machine="Some CPU, 1 of 8 cores", precision="bf16")
    for file in (recorded / "metrics").rglob("pope.json"):
        file.unlink()
    block = " ".join(readme_results.default_run(recorded).split())
    assert "Some CPU, 1 of 8 cores, precision bf16." in block and "AMD" not in block
    assert "POPE accuracy, adversarial objects (no run on benchmark pope)" in block
    assert "| POPE accuracy" not in block


def test_every_row_of_the_readme_is_measured_by_the_default_run_and_shown_where_it_is(tmp_path: Path) -> None:
    final = next(one for one in load(ROOT / "config/embedded.yaml").evaluations if one.model == "sft")
    assert not {benchmark for _, benchmark, *_ in readme_results.ROWS} - set(final.benchmarks)
    types = {group for *_, group, _ in readme_results.ROWS if group.startswith("type/")}
    assert types <= {row.group for row in read_tables(ROOT / "paper/tables.yaml")["reading"].rows}
    recorded = copy_of_recorded(tmp_path)
    for _, benchmark, metric, group, _ in readme_results.ROWS:
        file = recorded / f"metrics/embedded/sft/{benchmark}.json"
        content = json.loads(text_of(file if file.is_file() else file.with_name("draw.json")))
        numbers = content["groups"].setdefault(group, {}) if group else content["metrics"]
        numbers[metric] = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 7}
        file.write_text(json.dumps(content | {"benchmark": benchmark}))
    shutil.rmtree(recorded / "items/embedded/sft")  # scores of other answers
    block = readme_results.default_run(recorded)
    assert "Not measured" not in block
    for label, *_, scale in readme_results.ROWS:
        assert re.search(rf"\| {re.escape(label)} \| \d+ \|.* \*\*{0.25 * scale:.1f}\*\*", block), label


def test_the_readme_says_which_stages_the_study_trains_for_fewer_steps() -> None:
    study, default = (load(ROOT / f"config/{name}.yaml").stages for name in ("study", "embedded"))
    shorter = {name for name in study.keys() & default.keys() if study[name].steps < default[name].steps}
    assert shorter == set(re.findall(r"`(\w+)`", readme_results._scatter({3})))


def test_the_tree_in_the_readme_names_every_package() -> None:
    tree = text_of(ROOT / "README.md").partition("## Where things are")[2]
    packages = [file.parent.name for file in (ROOT / "src/dreamllm").glob("**/__init__.py")]
    assert not [name for name in packages if name != "dreamllm" and not re.search(rf"(?m)^ +{name}/ ", tree)]


def test_the_picture_of_the_readme_is_made_of_stored_predictions() -> None:
    assert readme_picture.OUT.stat().st_size < 200_000
    if not readme_picture.PREDICTIONS.is_dir():
        pytest.skip("the default run is not here")
    assert readme_picture.OUT.read_bytes() == readme_picture.picture(), "python workflow/readme_picture.py"
