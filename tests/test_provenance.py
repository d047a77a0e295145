"""The code digest of a module changes if and only if code that it runs changes."""

import subprocess
from pathlib import Path

import pytest

from dreamllm import provenance
from dreamllm.evaluate import tasks
from dreamllm.provenance import closure, code_digest

FILES = {
    "__init__.py": "VERSION = 1",
    "config.py": "",
    "entry.py": "from pack.sub import part\n\ndef run():\n    import pack.lazy\n    from . import near\n",
    "sub/__init__.py": "SUB = 1",
    "sub/part.py": "from ..far import value\n\ndef f():\n    '''doc'''\n    return value\n",
    "lazy.py": "LAZY = 1",
    "near.py": "import json\nNEAR = 1",
    "far.py": "value = 1",
    "other.py": "OTHER = 1",
}


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "pack"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def changes(package):
    """Says whether replacing a file's text changes the digest of pack.entry."""

    def change(name: str, text: str) -> bool:
        before = code_digest("pack.entry", package=package)
        (package / name).write_text(text)
        provenance._imports.cache_clear()
        provenance._tree.cache_clear()
        provenance._parsed.cache_clear()
        return code_digest("pack.entry", package=package) != before

    return change


def test_the_closure_follows_relative_lazy_and_package_imports(package):
    assert set(closure("pack.entry", package=package)) == {
        "pack",
        "pack.entry",
        "pack.sub",
        "pack.sub.part",
        "pack.lazy",
        "pack.near",
        "pack.far",
    }


@pytest.mark.parametrize("name", ["entry.py", "sub/__init__.py", "sub/part.py", "lazy.py", "near.py", "far.py"])
def test_changed_code_changes_the_digest(changes, name):
    assert changes(name, FILES[name] + "\nADDED = 1\n")


def test_comments_docstrings_and_formatting_do_not(changes):
    assert not changes(
        "sub/part.py", '# why\nfrom ..far import value\ndef f():\n    """other"""\n\n    return (value)\n'
    )
    assert not changes("far.py", 'value = 1\n"""What it is."""\n')


def test_modules_that_are_not_imported_do_not(changes):
    assert not changes("other.py", "OTHER = 2")


def test_a_module_that_does_not_exist_is_named(package):
    with pytest.raises(FileNotFoundError, match="pack.nothing"):
        closure("pack.nothing", package=package)


def test_configuration_classes_and_version_are_left_out():
    modules = closure("dreamllm.train.trainer")
    assert "dreamllm.model.dreamllm" in modules
    assert not {"dreamllm", "dreamllm.config.reading", "dreamllm.config.experiment"} & set(modules)


def test_functions_that_are_not_called_are_left_out_with_what_only_they_import(package):
    used, unused = "def predict():\n    import pack.near\n", "def score():\n    import pack.other\n"
    (package / "task.py").write_text(used + "\n" + unused)
    (package / "alone.py").write_text(used)
    kept = closure("pack.task", package=package, without=("score",))
    assert set(kept) == {"pack", "pack.task", "pack.near"}
    assert set(closure("pack.task", package=package)) == {*kept, "pack.other"}
    assert provenance._tree(package / "task.py", ("score",)) == provenance._tree(package / "alone.py", ())


def test_the_code_of_predictions_holds_no_metric_and_that_of_a_benchmark_no_other():
    for name in tasks.NAMES:
        modules = closure("dreamllm.evaluate.predict", f"dreamllm.evaluate.tasks.{name}", without=tasks.SCORING)
        assert not [module for module in modules if module.startswith("dreamllm.evaluate.metrics.")], name
    modules = closure("dreamllm.evaluate.predict", "dreamllm.evaluate.tasks.pope", without=tasks.SCORING)
    assert [m for m in modules if m.startswith("dreamllm.evaluate.tasks.")] == ["dreamllm.evaluate.tasks.pope"]


# ---- the commit ------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository whose only commit has a package; returns the package's folder."""
    code = tmp_path / "checkout/src/dreamllm"
    code.mkdir(parents=True)
    (code / "provenance.py").write_text("")
    git(tmp_path / "checkout", "init", "--quiet")
    git(code, "add", "--all")
    git(code, "commit", "--quiet", "--message", "test")
    return code


def test_the_commit_is_recorded_with_a_mark_where_the_code_differs(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    (checkout.parent.parent / "notes.txt").write_text("no code")
    assert provenance.commit(checkout) == {"commit": head}
    (checkout / "provenance.py").write_text("changed = 1")
    assert provenance.commit(checkout) == {"commit": f"{head}-modified"}


def test_a_repository_that_git_refuses_to_read_is_told_from_none(checkout, tmp_path, monkeypatch):
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert provenance.commit(tmp_path / "unpacked") == {
        "commit": None,
        "no_commit": "this code is in no git repository",
    }
    for name in ("HOME", "XDG_CONFIG_HOME"):  # no safe.directory of the user
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = provenance.commit(checkout)
    assert refused["commit"] is None and "git refuses to read the repository" in refused["no_commit"]
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(checkout) == {"commit": None, "no_commit": "git is not installed"}


def test_the_commit_of_a_foreign_repository_is_not_recorded(checkout, tmp_path, monkeypatch):
    """An archive unpacked inside a repository of something else, or a package installed there."""
    unpacked = checkout.parent.parent / "archive/src/dreamllm"
    unpacked.mkdir(parents=True)
    (unpacked / "provenance.py").write_text("")
    foreign = {"commit": None, "no_commit": "this code lies in a git repository that does not track it"}
    assert provenance.commit(unpacked) == foreign
    monkeypatch.setenv("GIT_DIR", str(checkout.parent.parent / ".git"))  # as in a hook
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "alone").mkdir()
    assert provenance.commit(tmp_path / "alone")["no_commit"] == "this code is in no git repository"
    monkeypatch.delenv("GIT_DIR")
    git(unpacked, "init", "--quiet")
    assert provenance.commit(unpacked) == {"commit": None, "no_commit": "the git repository has no commit"}
    git(unpacked, "add", "--all")
    git(unpacked, "commit", "--quiet", "--message", "taken over")  # its own repository, which tracks it
    assert provenance.commit(unpacked) == {"commit": git(unpacked, "rev-parse", "HEAD")}
