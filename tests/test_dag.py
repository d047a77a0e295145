"""dvc.yaml and the Snakemake DAG describe the same work, and DVC knows every output."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

import repository
from dreamllm.config.reading import load

CODE = {"workflow/Snakefile", "workflow/rules", "src/dreamllm"}
STAGES = yaml.safe_load((repository.ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
EXPERIMENT = load(repository.ROOT / "config/embedded.yaml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return repository.copy(tmp_path_factory.mktemp("dag") / "checkout")


@pytest.fixture(scope="module")
def jobs(checkout):
    """All jobs that make the results of the default configuration, apart from names for groups of results."""
    return [job for job in repository.jobs(checkout, "results/tables", "results/figures") if job[0] != "all"]


def allowed(stage: str) -> set[str]:
    """Rules that the stage may use."""
    words = STAGES[stage]["cmd"].split()
    return set(words[words.index("--allowed-rules") + 1 : words.index("--")])


def outputs(stage: str) -> set[str]:
    return {next(iter(out)) if isinstance(out, dict) else out for out in STAGES[stage]["outs"]}


def covers(folder: str, path: str) -> bool:
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def test_every_rule_belongs_to_one_stage(jobs):
    for rule in {rule for rule, _, _ in jobs}:
        assert len([stage for stage in STAGES if rule in allowed(stage)]) == 1, rule


def test_every_stage_calls_snakemake_restricted_to_its_rules(jobs):
    groups = {"foundations", "data", "evaluate"}
    for name, stage in STAGES.items():
        assert stage["cmd"].startswith("snakemake --cores all --allowed-rules "), name
        assert allowed(name) <= {rule for rule, _, _ in jobs} | groups, name


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_of_a_stage_are_those_of_its_jobs(jobs, stage):
    made = [path for rule, _, files in jobs if rule in allowed(stage) for path in files]
    assert all(any(covers(out, path) for out in outputs(stage)) for path in made), made
    assert all(any(covers(out, path) for path in made) for out in outputs(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_of_a_stage_are_what_its_jobs_read(jobs, stage):
    own = [job for job in jobs if job[0] in allowed(stage)]
    made = {path for _, _, files in own for path in files}
    read = {path for _, files, _ in own for path in files} - made
    dependencies = set(STAGES[stage].get("deps", [])) - CODE
    assert all(any(covers(dep, path) for dep in dependencies) for path in read), read
    assert all(any(covers(dep, path) for path in read) for dep in dependencies), dependencies


def test_no_two_stages_make_the_same():
    paths = [path for stage in STAGES for path in outputs(stage)]
    assert not [(a, b) for a in paths for b in paths if a != b and covers(a, b)]


def test_stages_depend_on_code_and_on_parameters_that_exist():
    content = yaml.safe_load((repository.ROOT / "config/embedded.yaml").read_text(encoding="utf-8"))
    for name, stage in STAGES.items():
        assert set(stage.get("deps", [])) >= CODE or name == "foundations"
        for entry in stage.get("params", []):
            for key in entry["config/embedded.yaml"]:
                value = content
                for step in key.split("."):
                    value = value[step]


def test_every_trained_stage_hands_its_parameters_to_dvc():
    seen = {
        key for stage in STAGES.values() for entry in stage.get("params", []) for key in entry["config/embedded.yaml"]
    }
    assert {f"stages.{name}" for name in EXPERIMENT.stages} <= seen
    assert {"world", "foundations", "seed", "precision", "model", "sd_finetuned", "evaluation", "evaluations"} <= seen


def test_the_report_is_made_of_results_and_is_no_stage(checkout, jobs):
    report = [job for job in repository.jobs(checkout, "report") if job[0] != "report"]
    of_its_own = {rule for rule, _, _ in report} - {rule for rule, _, _ in jobs}
    assert of_its_own == {"site", "crate"}
    assert not [stage for stage in STAGES if of_its_own & allowed(stage)]


def test_snakemake_lint_has_no_findings(checkout):
    for config in ("embedded", "smoke", "foundations"):
        assert repository.lint_findings(checkout, f"config/{config}.yaml") == []


def test_the_profile_is_found_and_parsing_writes_nothing(checkout):
    before = {
        path for path in checkout.rglob("*") if ".snakemake" not in path.parts and "__pycache__" not in path.parts
    }
    result = repository.run(checkout, "snakemake", "--dry-run")
    after = {path for path in checkout.rglob("*") if ".snakemake" not in path.parts and "__pycache__" not in path.parts}
    assert "profile profiles/default" in result.stdout
    assert after == before


def test_another_configuration_replaces_the_default(checkout):
    files = [
        path
        for _, _, outs in repository.jobs(checkout, "--configfile=config/smoke.yaml", "results/tables")
        for path in outs
    ]
    assert "results/metrics/smoke/sft/captions.json" in files
    assert "data/foundations_smoke/sd" in files
    assert not [path for path in files if "embedded" in path]


def test_an_experiment_of_several_seeds_trains_and_scores_one_run_of_each(checkout, tmp_path):
    text = (checkout / "config/smoke.yaml").read_text().replace("\nseed: 0\n", "\nseed: 0\nseeds: [0, 7]\n", 1)
    (tmp_path / "seeds.yaml").write_text(text)
    planned = repository.jobs(checkout, f"--configfile={tmp_path / 'seeds.yaml'}", "results/tables")
    files = [path for _, _, outs in planned for path in outs]
    assert len(files) == len(set(files))
    first, other = ([path for path in files if f"/smoke_{seed}" in path] for seed in (0, 7))
    assert [path.replace("/smoke_7", "/smoke_0") for path in sorted(other)] == sorted(first)
    assert {"results/checkpoints/smoke_7/sft", "results/metrics/smoke_7/sft/draw.json"} <= {*other}
    assert files.count("data/foundations_smoke/sd") == 1  # foundations and world are made once
    read = next(inputs for rule, inputs, _ in planned if rule == "tables")
    assert {"results/metrics/smoke_0/sft/vqa.json", "results/metrics/smoke_7/sft/vqa.json"} <= {*read}
    target = "results/checkpoints/smoke_7/align_creation"
    printed = repository.run(
        checkout, "snakemake", "-n", "-p", f"--configfile={tmp_path / 'seeds.yaml'}", target
    ).stdout
    assert "seeds.yaml --seed 7 --foundations" in printed


def test_overrides_and_two_configurations_are_refused(checkout):
    result = repository.run(checkout, "snakemake", "-n", "--config", "seed=3", check=False)
    assert "--config is not used here" in result.stdout
    result = repository.run(
        checkout, "snakemake", "-n", "--configfiles", "config/smoke.yaml", "config/embedded.yaml", check=False
    )
    assert "one configuration at a time" in result.stdout


def test_a_wrong_configuration_is_explained(checkout, tmp_path):
    text = (checkout / "config/smoke.yaml").read_text().replace("num_dream_queries", "num_dream_query")
    (tmp_path / "wrong.yaml").write_text(text)
    result = repository.run(checkout, "snakemake", "-n", f"--configfile={tmp_path / 'wrong.yaml'}", check=False)
    assert "model.num_dream_query: unknown key; did you mean num_dream_queries?" in result.stdout


def test_jobs_get_of_the_machine_what_they_need_and_what_is_timed_runs_alone(checkout, tmp_path):
    text = (repository.ROOT / "config" / "smoke.yaml").read_text()
    (tmp_path / "many.yaml").write_text(text + "\nmachine: {gpus: 8, nodes: 2}\n")
    target = "results/checkpoints/smoke/align_creation"
    many = repository.run(checkout, "snakemake", "-n", "-p", f"--configfile={tmp_path / 'many.yaml'}", target).stdout
    assert "bash workflow/launch.sh 2 8 --job logs/smoke/train_align_creation.log train" in many
    assert "nodes=2" in many and "mpi=srun" in many
    (tmp_path / "shared.yaml").write_text(text + "\nmachine: {gpus: 2, jobs_per_gpu: 8, gpus_per_prediction: 2}\n")
    timed = [f"results/predictions/smoke/sft/{name}.jsonl" for name in ("latency", "captions")]
    shared = repository.run(
        checkout, "snakemake", "-n", "-p", f"--configfile={tmp_path / 'shared.yaml'}", *timed
    ).stdout
    assert "JOBS_PER_GPU=8 bash workflow/launch.sh 1 2 --job logs/smoke/train_sft.log train" in shared
    assert "JOBS_PER_GPU=8 bash workflow/launch.sh 1 2 --job logs/smoke/predict_sft_captions.log predict" in shared
    assert "JOBS_PER_GPU=1 bash workflow/launch.sh 1 1 --job logs/smoke/predict_sft_latency.log predict" in shared
    small = ("--cores", "3", "--configfile=config/smoke.yaml")
    alone = repository.run(checkout, "snakemake", "-n", "-p", *small, *timed).stdout
    captions, latency = (alone.split(f"output: {path}")[1].split("--out")[0] for path in reversed(timed))
    assert "threads: 3" in latency and "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m dreamllm --job" in latency
    assert "threads" not in captions and "python -m dreamllm --job" in captions
    one = repository.run(checkout, "snakemake", "-n", "-p", "--configfile=config/smoke.yaml", target).stdout
    assert "python -m dreamllm --job logs/smoke/train_align_creation.log train" in one and "mpi" not in one


def test_the_workflow_catalog_of_snakemake_finds_what_its_rules_ask_for():
    """https://github.com/snakemake/snakemake-workflow-catalog, "standardized usage"."""
    root = repository.ROOT
    assert (root / "workflow/Snakefile").is_file()
    assert (root / "Snakefile").read_text().splitlines()[1] == 'include: "workflow/Snakefile"'
    readme = (root / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme and "workflow" in readme
    page = (root / "config/README.md").read_text(encoding="utf-8")
    assert all(f"`{path.relative_to(root)}`" in page for path in root.glob("config/*.yaml"))
    usage = yaml.safe_load((root / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["mandatory-flags"].keys() == {"desc", "flags"} and isinstance(usage["mandatory-flags"]["flags"], list)
    rules = "".join(path.read_text(encoding="utf-8") for path in root.glob("workflow/rules/*.smk"))
    deployed = {name: f"\n    {name}:" in rules for name in ("conda", "container")}
    assert usage["software-stack-deployment"] == {
        "conda": deployed["conda"],
        "apptainer": deployed["container"],
        "apptainer+conda": all(deployed.values()),
        "report": True,
    }


def test_files_stay_short():
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        check=True,
        cwd=repository.ROOT,
        capture_output=True,
        text=True,
    )
    limits = {".smk": 150, ".py": 400}
    for name in files.stdout.split():
        path = repository.ROOT / name
        if path.suffix in limits and path.exists() and not name.startswith("tests/"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= limits[path.suffix], name


def test_what_the_lock_promises_is_in_the_store():
    lock = repository.ROOT / "dvc.lock"
    if not lock.exists():
        pytest.skip("nothing recorded yet")
    store = repository.ROOT / EXPERIMENT.foundations.store / "files/md5"
    recorded = {
        out["path"]: out["md5"] for s in yaml.safe_load(lock.read_text())["stages"].values() for out in s["outs"]
    }
    assert recorded["data/foundations"] == EXPERIMENT.foundations.md5
    listing = store / EXPERIMENT.foundations.md5[:2] / EXPERIMENT.foundations.md5[2:]
    for entry in json.loads(listing.read_text()):
        assert (store / entry["md5"][:2] / entry["md5"][2:]).exists(), entry["relpath"]
