"""The provenance of results: library versions, commit, machine, and a digest of the code that a module runs.

The digest covers the syntax trees of the module and of every module of this package that it imports, directly or
indirectly, also inside functions. Comments, docstrings and formatting do not count, so that editing them reruns
nothing. Modules outside the package are not included; their versions are pinned in requirements.lock.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "tokenizers", "numpy")

CONFIGURATION = ("base", "benchmarks", "evaluation", "experiment", "foundations", "machine", "pictures", "reading")
CONFIGURATION += ("sources", "stages", "world")
NOT_FOLLOWED = frozenset({"dreamllm", "dreamllm.provenance", *(f"dreamllm.config.{name}" for name in CONFIGURATION)})
"""Modules without influence on a result: the package's version number, and the classes that check a configuration
(rules record the values in it by themselves)."""


def code_digest(*modules: str, package: Path = PACKAGE, without: tuple[str, ...] = ()) -> str:
    """Digest of all code that `modules` (dotted names) run, see above.

    without: names of module-level functions that they do not call; these and what only these import are left out
    Raises FileNotFoundError, naming the module, when one does not exist.
    """
    files = closure(*modules, package=package, without=without)
    trees = {name: _tree(file, without) for name, file in sorted(files.items())}
    return hashlib.sha256(repr(trees).encode()).hexdigest()[:16]


def closure(*modules: str, package: Path = PACKAGE, without: tuple[str, ...] = ()) -> dict[str, Path]:
    """The modules and all that they import from the package, by dotted name."""
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in found or name in NOT_FOLLOWED:
            continue
        file = _file(name, package)
        if file is None:
            raise FileNotFoundError(f"module {name} not found below {package}")
        found[name] = file
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        todo += parents  # importing a.b.c runs a/__init__.py and a/b/__init__.py too
        todo += [other for other in _imports(file, name, without) if _file(other, package)]
    return found


@functools.cache
def _file(name: str, package: Path) -> Path | None:
    top, *rest = name.split(".")
    if top != package.name:
        return None
    path = package.joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)


@functools.cache
def _imports(file: Path, module: str, without: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names that may be modules: for `from a import b` both a and a.b."""
    names = []
    here = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in _statements(_called_part(file, without)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(names)


@functools.cache
def _tree(file: Path, without: tuple[str, ...]) -> str:
    """The module's syntax tree as text."""
    return ast.dump(_called_part(file, without))


def _called_part(file: Path, without: tuple[str, ...]) -> ast.Module:
    """The module's syntax tree, without the module-level functions of these names."""
    tree = _parsed(file)
    kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name in without)]
    return ast.Module(kept or [ast.Pass()], tree.type_ignores)


@functools.cache
def _parsed(file: Path) -> ast.Module:
    """The module's syntax tree, without docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [statement for statement in node.body if not _is_string(statement)] or [ast.Pass()]
    return tree


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The root of the tree and all statements in it. Expressions, 90 % of the nodes, are skipped for speed, because
    every start of Snakemake walks all trees."""
    todo = [tree]
    while todo:
        node = todo.pop()
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, field, [])
        yield node


def _is_string(statement: ast.stmt) -> bool:
    """Whether a statement is a string alone: a docstring, or the documentation of a constant."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def commit(package: Path = PACKAGE) -> dict[str, str | None]:
    """The git commit of this code, for records: {"commit": SHA}, or SHA-modified if the code differs from it.

    Where the code belongs to no commit that git shows, {"commit": None, "no_commit": the reason}. The commit of another
    repository, inside of which this code lies untracked, is not recorded.
    """
    elsewhere = ["-u", "GIT_DIR", "-u", "GIT_WORK_TREE", "-u", "GIT_INDEX_FILE"]  # set in hooks of other repositories

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["env", *elsewhere, "LC_ALL=C", "git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)

    def none(reason: str) -> dict[str, str | None]:
        return {"commit": None, "no_commit": reason}

    if not shutil.which("git"):
        return none("git is not installed")
    inside = git("rev-parse", "--is-inside-work-tree")
    if "dubious ownership" in inside.stderr:
        return none("git refuses to read the repository, because it belongs to another user (safe.directory)")
    if inside.returncode:
        return none("this code is in no git repository")
    head = git("rev-parse", "--verify", "--quiet", "HEAD")
    if head.returncode:
        return none("the git repository has no commit")
    if git("cat-file", "-e", "HEAD:./provenance.py").returncode:
        return none("this code lies in a git repository that does not track it")
    changed = git("status", "--porcelain", "--", str(package))
    if changed.returncode:
        return none(f"git status fails: {changed.stderr.strip().rpartition(chr(10))[2]}")
    return {"commit": head.stdout.strip() + ("-modified" if changed.stdout else "")}


def machine() -> str:
    """The processor, the cores that torch uses, and the GPUs: "AMD EPYC, 1 of 2 cores, 8 x NVIDIA H100"."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ", ".join(
        [
            name,
            f"{torch.get_num_threads()} of {os.cpu_count()} cores",
            *(f"{number} x {gpu}" for gpu, number in gpus.items()),
        ]
    )
