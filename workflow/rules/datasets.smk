# The public data sets that an experiment uses (sections `sources` and `benchmarks`), grouped by what is made from them.
from dreamllm.sources import manifest

try:
    ASKED = [source for use in EXPERIMENT.benchmarks.values() for source in (use.source, use.shots_from) if source]
    PUBLIC = manifest.load() if EXPERIMENT.sources or ASKED else {}
    USED = {name: manifest.named(name, PUBLIC) for name in [*EXPERIMENT.sources, *ASKED]}
except ConfigProblem as problem:
    raise WorkflowError(f"{CONFIGFILE}: {problem}")
for BENCHMARK, USE in EXPERIMENT.benchmarks.items():
    for SOURCE in filter(None, (USE.source, USE.shots_from)):
        AS_IS = USE.task if USED[SOURCE].format == "as_is" else "no evaluation set"
        if (READ_AS := manifest.TASKS.get(USED[SOURCE].format, AS_IS)) != USE.task:
            raise WorkflowError(f"{CONFIGFILE}: benchmarks.{BENCHMARK}: {SOURCE} is read as {READ_AS}, not {USE.task}")
USED |= {source.written_from: PUBLIC[source.written_from] for source in USED.values() if source.written_from}
PLACED = [name for name, source in USED.items() if source.format in manifest.BENCHMARK_FORMATS]
WRITTEN = [name for name, source in USED.items() if source.format == "instructions"]
BUILT = [name for name in USED if name not in [*PLACED, *WRITTEN] and USED[name].format != "pictures"]
DOWNLOADED = sorted({*USED.keys() - {*WRITTEN}, *(other for source in USED.values() for other in source.pictures_from)})
for STAGE, SETTINGS in EXPERIMENT.stages.items():
    if unfit := [name for name in SETTINGS.mixture if name not in [*WORLD_SETS, *BUILT, *WRITTEN]]:
        raise WorkflowError(f"{CONFIGFILE}: stages.{STAGE}.mixture: {unfit[0]} is no training set")

EXTERNAL = [name for name, b in EXPERIMENT.benchmarks.items() if b.source and PUBLIC[b.source].answers_on]
SUBMISSIONS = of_all_runs(
    [PATHS.submission(model, name, task_of(name).submission) for model, name in EVALUATED if name in EXTERNAL]
)


def use(name):
    """The settings of a data set. Its folder is left out, so that renaming the folder runs nothing again."""
    return EXPERIMENT.sources.get(name, SourceSettings()).model_copy(update={"folder": None})


def pictures_from(name):
    """Flags that name the other data sets which hold a data set's pictures."""
    others = PUBLIC[name].pictures_from.items()
    return ["--pictures-from", *(f"{prefix}={PATHS.raw(other)}" for other, prefix in others)] if others else []


def of_pictures(name):
    """A digest of all that the downloaded pictures of a data set depend on."""
    program = Path("workflow/fetch_pictures.sh").read_text(encoding="utf-8")
    return digest(use(name).candidates, use(name).min_similarity, PUBLIC[name].format, PUBLIC[name].columns, program)


def distributor(wildcards, output):
    """How img2dataset spreads its work, from `machine`; a function of the output (see common.smk)."""
    return MACHINE.distributor
