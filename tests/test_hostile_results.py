"""The audit runs no code of the commit that a checkpoint names, reads no file outside, and has no traceback."""

import json
import shutil
from pathlib import Path

import pytest

import audited_repository
import repository
from dreamllm import provenance
from dreamllm.repro.audit import check_runs, lineage, run

CHECKPOINT = "results/checkpoints/small/align/checkpoint.json"
TRAINER = "src/dreamllm/train/trainer.py"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return audited_repository.build(tmp_path_factory.mktemp("commits") / "sound")


@pytest.fixture
def checkout(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "checkout", symlinks=True)


def head(root: Path) -> str:
    return repository.run(root, "git", "rev-parse", "HEAD").stdout.strip()


def commit_and_take_back(root: Path, file: str, text: str) -> tuple[str, str]:
    """Commit a file with `text` at its end, and its former content after that. Returns the first of the two commits,
    and the digest of the trainer's code there, where it has one."""
    path = root / file
    before = path.read_text(encoding="utf-8")
    path.write_text(before + text, encoding="utf-8")
    repository.commit(root)
    commit = head(root)
    fresh = shutil.copytree(root / "src/dreamllm", root.parent / "then")  # provenance keeps what it read of a path
    try:
        code = provenance.code_digest("dreamllm.train.trainer", package=shutil.move(fresh, root.parent / "x/dreamllm"))
    except SyntaxError:
        code = ""
    path.write_text(before, encoding="utf-8")
    repository.commit(root)
    return commit, code


def faults(root: Path, commit: str, code: str = "0123456789abcdef") -> list[str]:
    """What A03 says of the stage align when its checkpoint.json names this commit and this digest of the code."""
    about = json.loads((root / CHECKPOINT).read_text(encoding="utf-8")) | {"commit": commit, "code": code}
    (root / CHECKPOINT).write_text(json.dumps(about))
    found = check_runs.code(audited_repository.audited_run(root)).faults
    return [fault.what for fault in found if "stage align" in fault.what]


@pytest.mark.parametrize("file", ["src/dreamllm/provenance.py", "src/dreamllm/__init__.py", TRAINER])
def test_code_of_a_commit_is_not_run(checkout, tmp_path, file):
    trace = f"\nimport pathlib\npathlib.Path({str(tmp_path / 'it_ran')!r}).touch()\n"
    commit, _ = commit_and_take_back(checkout, file, trace)
    assert faults(checkout, commit)
    assert not (tmp_path / "it_ran").exists()


def test_code_of_an_earlier_commit_is_judged_by_the_rule_of_today(checkout):
    commit, code = commit_and_take_back(checkout, TRAINER, "\nCHANGED = 1\n")
    assert code != provenance.code_digest("dreamllm.train.trainer")
    assert faults(checkout, commit, code) == []
    assert faults(checkout, commit) == [
        f"stage align was trained by code 0123456789abcdef, commit {commit[:12]} has {code}"
    ]


@pytest.mark.parametrize("text", ["\n)", "\n" + "(" * 10_000, "\nx = '\\N{no such name}'\n"])
def test_code_that_cannot_be_parsed_is_a_fault_and_no_traceback(checkout, text):
    commit, _ = commit_and_take_back(checkout, TRAINER, text)
    [fault] = faults(checkout, commit)
    assert fault.endswith("has none that can be read")


def test_a_commit_that_is_no_ancestor_is_a_fault(checkout):
    first = head(checkout)
    commit, code = commit_and_take_back(checkout, TRAINER, "\nCHANGED = 1\n")
    repository.run(checkout, "git", "reset", "--quiet", "--hard", first)
    [fault] = faults(checkout, commit, code)
    assert fault == f"stage align was trained at commit {commit[:12]}, which is no ancestor of the one checked out"
    assert faults(checkout, first, provenance.code_digest("dreamllm.train.trainer")) == []


@pytest.mark.parametrize("name", ["HEAD", "master", "@", "--output=it_ran", "-h", "0" * 40, "HEAD:src", "x" * 9000])
def test_a_name_is_no_commit(checkout, name):
    assert not lineage.commit_link(audited_repository.audited_run(checkout).run, name).digest
    [fault] = faults(checkout, name)
    assert "is not in this history" in fault
    assert not (checkout / "it_ran").exists()


ODD = ["[]", "7", "{", "[" * 100_000, '{"versions": []}', '{"data": {"pairs": 3}}', '{"data": []}',
       '{"foundations": 1}',
       '{"init": 7}', '{"init": [7]}', '{"config": "x"}', '{"model": []}', '{"seed": NaN}', "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:30])
def test_an_odd_checkpoint_json_is_a_fault_and_no_traceback(checkout, text):
    (checkout / CHECKPOINT).write_text(text)
    found = dict(run.audit(audited_repository.audited_run(checkout)))
    assert found["A03"].outcome == found["A04"].outcome == "fail"


@pytest.mark.parametrize("name", ["../../../secret", "/etc/hostname", "../" * 9 + "etc/hostname"])
@pytest.mark.parametrize("key", ["data", "foundations"])
def test_the_audit_reads_nothing_outside_of_the_repository(checkout, tmp_path, key, name):
    """A digest of a file says what is in it, if that can be guessed."""
    (tmp_path / "secret").write_text("a secret")
    about = json.loads((checkout / CHECKPOINT).read_text(encoding="utf-8"))
    if key == "data":
        about["data"] = {"pairs": {name: "0" * 64}}
    else:
        about["foundations"][name] = "0" * 64
    (checkout / CHECKPOINT).write_text(json.dumps(about))
    audited = audited_repository.audited_run(checkout)
    links = [link for link in audited.links if link.name == name]
    assert links and all(link.digest == "" and "leads out of its folder" in link.problem for link in links)
    assert any("leads out of its folder" in fault.what for fault in dict(run.audit(audited))["A04"].faults)
