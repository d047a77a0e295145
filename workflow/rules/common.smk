# The experiment, its paths, and what the rules share. Reading this writes no files.
from pathlib import Path

import yaml

from dreamllm.config.experiment import RELEASED
from dreamllm.config.reading import ConfigProblem, check_folders, check_tracker, digest, load
from dreamllm.config.sources import SourceSettings
from dreamllm.config.world import WORLD_SETS
from dreamllm.evaluate import tasks
from dreamllm.paths import CODECHECK, CRATE, FIGURES, REPORT, SUMMARY, TABLES, Paths
from dreamllm.provenance import code_digest
from dreamllm.results.figure_captions import CAPTIONS

# One file is one whole experiment: --configfile replaces the default, nothing is merged or overridden.
if len(workflow.configfiles) > 1:
    raise WorkflowError(
        f"one configuration at a time, not {', '.join(map(str, workflow.configfiles))}; "
        "before a target write --configfile=FILE, with the equals sign"
    )
if workflow.config_settings.config:
    raise WorkflowError(
        "--config is not used here: copy config/embedded.yaml, change it, and give it by --configfile=FILE"
    )
CONFIGFILE = str(next(iter(workflow.configfiles), "config/embedded.yaml"))
try:
    EXPERIMENT = load(CONFIGFILE)
    tasks.check(EXPERIMENT, CONFIGFILE)
    if workflow.is_main_process:
        check_folders(EXPERIMENT)
        check_tracker(EXPERIMENT, CONFIGFILE)
except ConfigProblem as problem:
    raise WorkflowError(str(problem))
config.update(EXPERIMENT.model_dump(mode="json"), captions=CAPTIONS)  # with all defaults; workflow/report reads it

# By default glibc returns the memory of big tensors to the system at every step, and a CPU job spends 28 % of its time
# in page faults; with these settings 1 %. Other C libraries ignore them.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
JOB_VARIABLES = {**MALLOC, "PYTHONUTF8": "1"}  # texts and names of files are UTF-8, whatever the locale says
shell.prefix("".join(f"export {name}={value}; " for name, value in JOB_VARIABLES.items()))

NAME, MACHINE = EXPERIMENT.name, EXPERIMENT.machine
RUNS = EXPERIMENT.runs()  # by name, one per seed; the wildcard `run` of all that is trained, predicted and scored
PATHS = Paths(EXPERIMENT, "{run}")
FIRST = Paths(EXPERIMENT, next(iter(RUNS)))

WORLD = {part: PATHS.world(part) for part in ("train", "benchmarks")}
IMPORTED = EXPERIMENT.foundations.source == "import"
OWN = EXPERIMENT.foundations.source in ("fetch", "train")  # foundations of the emoji world; they also measure
FETCHED = EXPERIMENT.instruments  # fetched or trained, same folders
MEASURING = {part: PATHS.instrument(part) for part in ("llm", "clip", "sd", "judge", "judge2", *FETCHED.others)}
FOUNDATIONS = MEASURING if OWN else {part: PATHS.foundation(part) for part in ("llm", "clip", "sd")}
TRAINED = [*EXPERIMENT.stages, *(["sd_finetuned"] if EXPERIMENT.sd_finetuned else [])]
RELEASES = "paper/released.yaml"


def other_foundations(model):
    """Folders of foundations that an evaluated model, or a stage, has in place of llm and sd."""
    folders = EXPERIMENT.folders_of(model)
    return [FOUNDATIONS[name] for name in folders if name not in ("llm", "clip", "sd")]


def shard_folders(stage):
    """The folders with the shard sets of a stage's mixture, or of the fine-tuned Stable Diffusion; emoji world first."""
    trained = EXPERIMENT.sd_finetuned if stage == "sd_finetuned" else EXPERIMENT.stages[stage]
    sets = sorted(trained.mixture or ["pairs"], key=lambda name: name not in WORLD_SETS)
    return list(dict.fromkeys(PATHS.shards(name) for name in sets))


def of_evaluations(path, chosen=lambda benchmark: True):
    """The path, a function of model and benchmark, of everything that each run evaluates."""
    return [
        path(one.model, benchmark).format(run=run)
        for run, experiment in RUNS.items()
        for one in experiment.evaluations
        for benchmark in one.benchmarks
        if chosen(benchmark)
    ]


def seed_flag(wildcards):
    """Tell a job which run it belongs to, where an experiment has several."""
    return ["--seed", str(RUNS[wildcards.run].seed)] if EXPERIMENT.seeds else []


def stage_settings(stage):
    """Digest of the settings that a stage is trained with, as a function of the run."""
    return lambda wildcards: digest(
        RUNS[wildcards.run].seed, EXPERIMENT.precision, EXPERIMENT.model, EXPERIMENT.stages[stage]
    )


# Snakemake runs a job again when a param changes, unless the param is a function of the output (or input). So what must
# not cause a rerun, such as the section `machine`, is written as a function with the argument `output`.


def configfile(wildcards, output):
    """The path of the configuration. Renaming the file runs nothing again: the settings that a job reads there are
    digests in its params."""
    return CONFIGFILE


def launch(wildcards, output):
    """The command that starts the processes of a training, from `machine`. It replaces its shell (`exec`), which SIGTERM
    to all processes of a Slurm job would end at once; Slurm would then kill the training while it saves its state."""
    if MACHINE.gpus * MACHINE.nodes == 0:
        return "exec python -m dreamllm"
    return f"exec env JOBS_PER_GPU={MACHINE.jobs_per_gpu} bash workflow/launch.sh {MACHINE.nodes} {MACHINE.gpus}"


def launch_one(wildcards, output):
    """The command that starts any other job; a timed one shares its GPU with no other job."""
    timed = is_timed(wildcards)
    if number := gpus(wildcards):
        return f"exec env JOBS_PER_GPU={1 if timed else MACHINE.jobs_per_gpu} bash workflow/launch.sh 1 {number}"
    if timed:  # it reserves all cores but computes with `machine.threads` of them; torch reads both variables
        return f"exec env OMP_NUM_THREADS={MACHINE.threads} MKL_NUM_THREADS={MACHINE.threads} python -m dreamllm"
    return "exec python -m dreamllm"


# Resources of the three kinds of jobs. Each rule names one of them; a rule without `threads` uses one core.
CPU_JOB = dict(mem_mb=MACHINE.memory_mb, runtime=MACHINE.minutes)
GPU_JOB = dict(**CPU_JOB, gpu=min(1, MACHINE.gpus))
TRAINING_JOB = dict(**CPU_JOB, gpu=MACHINE.gpus, nodes=1)
if MACHINE.gpus and MACHINE.nodes > 1:
    # Resources of the Slurm executor plugin. `gpu` is a total that Slurm may divide unevenly, `gres` is per node; with
    # `mpi` the job starts its own tasks, one per node.
    TRAINING_JOB = dict(
        **CPU_JOB,
        nodes=MACHINE.nodes,
        tasks=MACHINE.nodes,
        tasks_per_gpu=0,
        mpi="srun",
        gres=f"gpu:{MACHINE.gpus}",
    )


def release(name):
    """Digest of what is downloaded of a release. The sha256 values of the manifest are left out, so that adding one
    downloads nothing again."""
    entry = yaml.safe_load(Path(RELEASES).read_text(encoding="utf-8")).get(name, {})
    return digest({key: entry.get(key) for key in ("repo", "revision", "patterns")})


wildcard_constraints:
    run="|".join(RUNS),
    model="[a-z0-9_]+",
    benchmark="[a-z][a-z0-9_]*",
    sample="[0-9]+",
