"""The code digest of a module changes if and only if code that it runs changes."""

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
