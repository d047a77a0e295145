"""`make restore` in a fresh clone leaves nothing to run, and no way leads from a stale result into dvc.lock.

The verbs are stand-ins; Snakemake, DVC, its caches and remotes (a folder; S3 as moto serves it on loopback) are real.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import repository
from dreamllm import snakemake_records
from dreamllm.atomic import HOST
from repository import planned, run

TRAINED = "results/checkpoints/embedded"
SECRETS = {"HF_TOKEN": "hf_secretsecretsecret", "OPENAI_API_KEY": "sk-secretsecretsecret"}
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder that somebody shares results in."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, lab) -> Path:
    """A repository after a run, `make record` and a commit; all it made is in the shared folder."""
    folder = repository.copy_with_stub_verbs(tmp_path_factory.mktemp("restore") / "recorded")
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        run(folder, "snakemake", "--cores", "2", "results/tables")
    run(folder, "dvc", "remote", "add", "--default", "--local", "lab", str(lab))
    run(folder, "python", "workflow/record.py")
    changed = run(folder, "git", "status", "--short").stdout.split()
    assert changed[:2] == ["M", "dvc.lock"]
    assert {path.partition("/files/")[0] for path in changed[3::2]} == {"data/store", "results/"}
    repository.commit(folder)
    return folder


def clone(recorded: Path, folder: Path, remote: str | Path) -> Path:
    """A fresh clone in which a remote was named."""
    repository.clone(recorded, folder)
    run(folder, "dvc", "remote", "add", "--default", "--local", "lab", str(remote))
    return folder


def restore(folder: Path, *arguments: str, check: bool = True) -> str:
    """What `make restore` says."""
    return run(folder, "python", "workflow/restore.py", *arguments, check=check).stdout


@pytest.fixture(scope="module")
def restored(recorded, lab, tmp_path_factory) -> Path:
    """A fresh clone after `make restore`. Tests leave it as they found it."""
    folder = clone(recorded, tmp_path_factory.mktemp("restored") / "clone", lab)
    restore(folder)
    return folder


def nothing_to_do(folder: Path) -> None:
    """Neither Snakemake nor DVC has anything to do, no verb has run, and git sees no change."""
    assert planned(folder, "results/tables") == {}
    assert run(folder, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert run(folder, "git", "status", "--short").stdout == ""
    assert not (folder / "logs/ran.txt").exists()


def test_tokens_of_the_environment_are_in_no_log_record_or_result(recorded, lab):
    for path in [path for folder in (recorded, lab) for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path


def test_a_fresh_clone_is_restored_from_a_folder_and_has_nothing_to_do(restored):
    nothing_to_do(restored)
    assert not (restored / f"{TRAINED}/sft/trained.safetensors").is_symlink()


def test_hard_links_are_refused_before_and_after_they_were_made_and_symbolic_ones_will_do(recorded, lab, tmp_path):
    folder = clone(recorded, tmp_path / "clone", lab)
    run(folder, "dvc", "config", "--local", "cache.type", "reflink,hardlink,copy")
    said = restore(folder, check=False)
    assert "error: cache.type names hardlink" in said and "dvc checkout --relink" in said
    assert not (folder / "results/metrics").exists(), "nothing was pulled"
    run(folder, "dvc", "pull", "--quiet")
    run(folder, "dvc", "config", "--local", "cache.type", "symlink")
    assert " is a hard link" in restore(folder, "--no-pull", check=False)
    run(folder, "dvc", "checkout", "--quiet", "--relink")
    restore(folder, "--no-pull")
    nothing_to_do(folder)
    assert (folder / f"{TRAINED}/sft/trained.safetensors").is_symlink()


@pytest.fixture
def s3(monkeypatch):
    """Address of an S3 service on loopback."""
    pytest.importorskip("dvc_s3", reason="the optional package dvc-s3 is not installed")
    pytest.importorskip("moto.server", reason="the optional package moto, with its server, is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "moto's server did not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_a_fresh_clone_is_restored_from_s3_into_a_cache_that_shares_blocks(recorded, tmp_path, s3):
    import boto3

    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="lab")
    source = clone(recorded, tmp_path / "source", "s3://lab/dreamllm")
    run(source, "dvc", "remote", "modify", "--local", "lab", "endpointurl", s3)
    run(source, "dvc", "config", "--local", "cache.dir", str(recorded / ".dvc/cache"))
    assert "files pushed" in run(source, "dvc", "push").stdout

    folder = clone(recorded, tmp_path / "clone", "s3://lab/dreamllm")
    run(folder, "dvc", "remote", "modify", "--local", "lab", "endpointurl", s3)
    run(folder, "dvc", "config", "--local", "cache.type", "reflink,copy")
    assert "left to run: nothing" in restore(folder)
    nothing_to_do(folder)


def test_after_restoring_one_changed_setting_runs_what_depends_on_it_alone(restored):
    config = restored / "config/embedded.yaml"
    text = config.read_text()
    config.write_text(text.replace("max_pictures: 6", "max_pictures: 5"))
    assert set(planned(restored, "results/tables")) == {"predict_pictures", "score", "tables", "figures"}
    config.write_text(text)
    nothing_to_do(restored)


def test_an_edited_result_is_neither_accepted_nor_recorded(restored):
    lock, table = (restored / "dvc.lock").read_bytes(), restored / "results/tables/table1.csv"
    table.write_text("better numbers")
    assert "Can't remove the following unsaved files" in restore(restored, check=False)
    assert "not what dvc.lock says: results" in restore(restored, "--no-pull", check=False)
    for command in (("python", "workflow/record.py"), ("dvc", "repro")):
        result = run(restored, *command, check=False)
        assert result.returncode != 0
        assert "results/tables/table1.csv: changed after it was made" in " ".join(result.stdout.split())
    assert (restored / "dvc.lock").read_bytes() == lock
    run(restored, "dvc", "checkout", "--force", "results")
    restore(restored, "--no-pull")
    nothing_to_do(restored)


PLANTED = [  # file, what is changed in it, and the first stages that this makes doubtful
    ("config/embedded.yaml", "max_pictures: 6", "max_pictures: 5", "evaluate"),
    ("src/dreamllm/train/trainer.py", "import annotations\n", "import annotations\nCHANGED = 1\n", "data, align"),
]


def test_what_was_pulled_is_not_taken_for_the_result_of_other_settings_or_code(recorded, lab, tmp_path):
    """Neither by restoring, nor by `dvc repro`, where file times alone would speak for the old files."""
    folder = clone(recorded, tmp_path / "clone", lab)
    run(folder, "dvc", "pull", "--quiet")
    lock = (folder / "dvc.lock").read_bytes()
    for file, old, new, stages in PLANTED:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))
        assert f"not what dvc.lock says: {stages}" in restore(folder, "--no-pull", check=False)
        result = run(folder, "dvc", "repro", check=False)
        assert result.returncode != 0
        assert "not made here" in result.stdout
        assert (folder / "dvc.lock").read_bytes() == lock
        assert not (folder / "logs/ran.txt").exists()
        (folder / file).write_text(text)
    restore(folder, "--no-pull")  # as `git stash; make restore` do
    nothing_to_do(folder)


def test_an_evaluation_is_made_again_without_the_training_data(recorded, lab, tmp_path):
    folder = clone(recorded, tmp_path / "clone", lab)
    config = folder / "config/embedded.yaml"
    config.write_text(config.read_text().replace("max_pictures: 6", "max_pictures: 5"))
    run(folder, "dvc", "repro", "--pull", "--allow-missing", "evaluate")
    verbs = set((folder / "logs/ran.txt").read_text().split())
    assert verbs == {"predict", "score"}
    assert (folder / f"{TRAINED}/sft/trained.safetensors").exists(), "pulled"
    assert not (folder / "data/emoji/train").exists()


def test_dvc_compares_experiments_metrics_and_curves(restored):
    run(
        restored, "dvc", "exp", "run", "--name", "fewer", "-S", "config/embedded.yaml:evaluation.stories.max_pictures=5"
    )
    assert set((restored / "logs/ran.txt").read_text().split()) == {"predict", "score"}  # the stand-ins score the same
    shown = run(restored, "dvc", "exp", "show", "--csv").stdout
    assert "fewer" in shown and "max_pictures" in shown
    assert "results/summary/metrics.json" in run(restored, "dvc", "metrics", "diff", "--all", "HEAD").stdout
    plots = run(restored, "dvc", "plots", "diff", "HEAD", "--json").stdout
    assert "results/summary/losses/sft.csv" in plots

    run(restored, "git", "checkout", "--quiet", "config", "dvc.lock")
    run(restored, "dvc", "checkout", "--force", "--quiet")
    (restored / "logs/ran.txt").unlink()
    restore(restored, "--no-pull")
    nothing_to_do(restored)


def test_records_tell_made_files_from_strangers_and_edited_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").write_text(
        "rule one:\n    output: 'out/one'\n    shell: 'echo 1 > {output}'\n"
        "rule all:\n    default_target: True\n    input: 'out/one', 'folder'\n"
        "rule folder:\n    output: directory('folder')\n"
        "    shell: 'mkdir -p {output}/deep; echo 1 > {output}/deep/two'\n"
    )
    run(tmp_path, "snakemake", "--cores", "1")
    assert snakemake_records.untracked_outputs(["out", "folder", "absent"]) == {}
    (tmp_path / "out/other").write_text("")
    later = time.time() + 10
    os.utime(tmp_path / "folder/deep/two", (later, later))
    assert snakemake_records.untracked_outputs(["out", "folder"]) == {
        "out/other": "not made here",
        "folder/deep/two": "changed after it was made",
    }
    begun = tmp_path / ".snakemake/incomplete/b3V0L290aGVy"  # out/other
    begun.write_text("")
    assert snakemake_records.untracked_outputs(["out"]) == {}


def test_digests_are_those_of_when_a_job_made_the_file_until_a_job_makes_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").symlink_to(repository.ROOT / "src")
    hooks = "".join(f"on{end}:\n    record_digests(touched=workflow.touch)\n" for end in ("success", "error"))
    (tmp_path / "Snakefile").write_text(
        f"from dreamllm.snakemake_records import record_digests\n{hooks}"
        "rule all:\n    input: 'results/b', 'results/folder'\n"
        "rule a:\n    output: 'results/a'\n    shell: 'echo 1 > {output}'\n"
        "rule b:\n    input: 'results/a'\n    output: 'results/b'\n    shell: 'cat {input} > {output}'\n"
        "rule folder:\n    output: directory('results/folder')\n"
        "    shell: 'mkdir {output}; touch {output}/x {output}/y'\n"
        "rule fails:\n    input: 'results/b'\n    output: 'results/c'\n    shell: 'false'\n"
    )
    run(tmp_path, "snakemake", "--cores", "1", "results/c", check=False)
    assert set(snakemake_records.read_digests()) == {"results/a", "results/b"}, "also of a run that failed"
    run(tmp_path, "snakemake", "--cores", "1")
    assert snakemake_records.changed_by_hand() == {}
    made = (tmp_path / "results/b").stat()
    (tmp_path / "results/b").write_text("2\n")
    os.utime(tmp_path / "results/b", ns=(made.st_atime_ns, made.st_mtime_ns))
    (tmp_path / "results/folder/x").write_text("2")
    (tmp_path / "results/folder/y").unlink()
    (tmp_path / "results/folder/z").write_text("")
    edited = {
        "results/b": "changed",
        "results/folder/x": "changed",
        "results/folder/y": "removed",
        "results/folder/z": "added",
    }
    assert snakemake_records.changed_by_hand() == edited
    assert "Nothing to be done" in run(tmp_path, "snakemake", "--cores", "1").stdout, "therefore the digests"
    run(tmp_path, "snakemake", "--cores", "1", "--forcerun", "a", "--until", "a")
    run(tmp_path, "snakemake", "--cores", "1", "--touch", "--forceall")
    assert snakemake_records.changed_by_hand() == edited, "neither another job nor new times make it an honest result"
    line = run(tmp_path, sys.executable, repository.ROOT / "workflow/changed.py").stdout
    assert line.startswith("Changed by hand after it was made: results/b (changed), and 3 more.")
    shutil.rmtree(tmp_path / "results")
    run(tmp_path, "snakemake", "--cores", "1")
    assert snakemake_records.changed_by_hand() == {}
    assert run(tmp_path, sys.executable, repository.ROOT / "workflow/changed.py").stdout == ""
    (tmp_path / ".snakemake/digests.json").write_text("[")
    with pytest.raises(snakemake_records.DigestProblem, match="is not JSON"):
        snakemake_records.changed_by_hand()


def test_unfinished_files_of_killed_jobs_are_swept_away_and_no_others(tmp_path):
    """Not those of living processes: another experiment may be running in the same folder."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    dead, alive = process.pid, os.getppid()
    swept = [f".captions.json.{HOST}-{dead}", f"model/.a.tar.{dead}", f"model/.trained.{HOST}-{dead}/part"]
    kept = [
        f".captions.json.{HOST}-{alive}",
        f"model/.a.tar.{alive}",
        f"model/.sft.{HOST}-{alive}/trained.safetensors",
        f".captions.json.another{HOST}-{dead}",  # of another machine on the same file system
        "model/.hidden",
        f"model/file.{dead}",
        "model/.snakemake_timestamp",
    ]
    for name in (*swept, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert snakemake_records.sweep(tmp_path) == sorted(tmp_path / name.removesuffix("/part") for name in swept)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert snakemake_records.sweep(tmp_path) == snakemake_records.sweep(tmp_path / "absent") == []


def test_a_run_beside_another_leaves_what_the_other_one_is_writing(tmp_path):
    write = "from dreamllm.atomic import new_folder\nimport sys\n"
    write += "with new_folder('results/model') as folder:\n    (folder / 'part').write_text('whole')\n"
    write += "    print('written', flush=True)\n    sys.stdin.read()\n"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", write], cwd=tmp_path, **pipes) as first:
        assert first.stdout.readline() == "written\n"
        snakemake_records.sweep(tmp_path / "results")
        first.communicate("")
    assert first.returncode == 0
    assert (tmp_path / "results/model/part").read_text() == "whole"
