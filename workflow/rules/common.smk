# The experiment, its paths, and the digests that decide what is run again. Nothing is written while this is read.
from pathlib import Path

import yaml

from dreamllm.config.reading import ConfigProblem, digest, load
from dreamllm.config.experiment import FOUNDATION_MODELS, RELEASED
from dreamllm.config.world import WORLD_SETS
from dreamllm.evaluate import tasks
from dreamllm.provenance import code_digest
from dreamllm.results.figure_captions import CAPTIONS
from dreamllm.config.sources import SourceSettings

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
except ConfigProblem as problem:
    raise WorkflowError(str(problem))
config.update(EXPERIMENT.model_dump(mode="json"), captions=CAPTIONS)  # with all defaults; workflow/report reads it

# Big tensors come and go at every step; told not to give their memory back each time, glibc spends 1 % of a CPU job in
# page faults instead of 28 %. Other C libraries ignore these.
shell.prefix("export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456; ")

NAME, MACHINE = EXPERIMENT.name, EXPERIMENT.machine
RUNS = EXPERIMENT.runs()  # by name: the wildcard `run` of everything that is trained, predicted and scored
FIRST = next(iter(RUNS))

WORLD = {part: f"{EXPERIMENT.world.folder}/{part}" for part in ("train", "benchmarks")}
IMPORTED = EXPERIMENT.foundations.source == "import"
OWN = EXPERIMENT.foundations.source in ("fetch", "train")  # the emoji world's: they measure as well
FETCHED = EXPERIMENT.foundations if OWN else EXPERIMENT.foundations.instruments  # or trained, in the same folders
MEASURING = {part: f"{FETCHED.folder}/{part}" for part in ("llm", "clip", "sd", "judge")}
FOUNDATIONS = MEASURING if OWN else {part: f"{EXPERIMENT.foundations.folder}/{part}" for part in ("llm", "clip", "sd")}
TRAINED = [*EXPERIMENT.stages, *(["sd_finetuned"] if EXPERIMENT.sd_finetuned else [])]
RELEASES = "paper/released.yaml"


def source_folder(name, part):
    """Where a public data set is made. part: urls, pictures or shards."""
    folder = EXPERIMENT.sources.get(name, SourceSettings()).folder
    return f"{folder or f'data/sources/{name}'}/{part}"


def shard_folders(stage):
    """The folders with the shard sets of a stage's mixture."""
    sets = list(EXPERIMENT.stages[stage].mixture)
    world = [WORLD["train"]] if set(sets) & set(WORLD_SETS) else []
    return world + [source_folder(name, "shards") for name in sets if name not in WORLD_SETS]


def checkpoint(stage, run="{run}"):
    """A checkpoint of a run. What is no run's own, a released model or the mini autoencoder, is the experiment's."""
    return f"results/checkpoints/{NAME if stage in (RELEASED, 'vae') else run}/{stage}"


def of_all_runs(patterns):
    """Paths with the wildcard `run`, of every run."""
    return [pattern.format(run=run) for run in RUNS for pattern in patterns]


def seed_flag(wildcards):
    """Says to a job which run it belongs to, where there are several."""
    return ["--seed", str(RUNS[wildcards.run].seed)] if EXPERIMENT.seeds else []


def stage_settings(stage):
    """Digest of what a stage is trained by, as a function of the run."""
    return lambda wildcards: digest(RUNS[wildcards.run].seed, EXPERIMENT.model, EXPERIMENT.stages[stage])


def configfile(wildcards, output):
    """The path of the configuration: a function of the output, so that renaming the file runs nothing again.

    What a job reads in the file stands as a digest in its params, and a change of that does run it again.
    """
    return CONFIGFILE


def launch(wildcards, output):
    """How training processes are started: a function of the output, so that another machine trains nothing again."""
    if MACHINE.gpus * MACHINE.nodes == 0:
        return "python -m dreamllm"
    return f"JOBS_PER_GPU={MACHINE.jobs_per_gpu} bash workflow/launch.sh {MACHINE.nodes} {MACHINE.gpus}"


def is_timed(wildcards):
    """Whether a prediction measures time: nothing else may run beside it."""
    return "benchmark" in wildcards.keys() and task_of(wildcards.benchmark).timed


def launch_one(wildcards, output):
    """The same for jobs that use one GPU at most; what times pictures has it for itself."""
    timed = is_timed(wildcards)
    if MACHINE.gpus:
        return f"JOBS_PER_GPU={1 if timed else MACHINE.jobs_per_gpu} bash workflow/launch.sh 1 1"
    if timed:  # it keeps all cores, and computes with its own; torch listens to both variables
        return f"OMP_NUM_THREADS={MACHINE.threads} MKL_NUM_THREADS={MACHINE.threads} python -m dreamllm"
    return "python -m dreamllm"


def cores(wildcards):
    """Cores that a prediction asks for; without a GPU, what times pictures keeps all of them from other jobs."""
    alone = is_timed(wildcards) and not MACHINE.gpus
    return max(MACHINE.threads, workflow.resource_settings.cores or 0) if alone else MACHINE.threads


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
    """Digest of what is downloaded; a sha256 that was only added to the manifest downloads nothing again."""
    entry = yaml.safe_load(Path(RELEASES).read_text(encoding="utf-8")).get(name, {})
    return digest({key: entry.get(key) for key in ("repo", "revision", "patterns")})


wildcard_constraints:
    run="|".join(RUNS),
    model="[a-z0-9_]+",
    benchmark="[a-z][a-z0-9_]*",
    sample="[0-9]+",
