# The data sets that an experiment uses (sections `sources` and `benchmarks`), public ones and people's own, grouped by
# what is made from them.
from dreamllm.sources import manifest, own
from dreamllm.sources.records import RecordProblem

try:
    ASKED = [source for use in EXPERIMENT.benchmarks.values() for source in (use.source, use.shots_from) if source]
    PUBLIC = manifest.of_experiment(EXPERIMENT) if EXPERIMENT.sources or ASKED else {}
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
OWN_SETS = [name for name in USED if USED[name].availability == "own"]
DOWNLOADED = sorted(
    {*USED.keys() - {*WRITTEN, *OWN_SETS}, *(other for source in USED.values() for other in source.pictures_from)}
)
for STAGE, SETTINGS in EXPERIMENT.stages.items():
    if unfit := [name for name in SETTINGS.mixture if name not in [*WORLD_SETS, *BUILT, *WRITTEN]]:
        raise WorkflowError(f"{CONFIGFILE}: stages.{STAGE}.mixture: {unfit[0]} is no training set")

EXTERNAL = [name for name, b in EXPERIMENT.benchmarks.items() if b.source and PUBLIC[b.source].answers_on]
SUBMISSIONS = of_evaluations(
    lambda model, name: PATHS.submission(model, name, task_of(name).submission), lambda name: name in EXTERNAL
)


for SET in OWN_SETS if workflow.is_main_process else ():
    MADE = PATHS.placed(SET) if SET in PLACED else PATHS.source(SET, "shards")
    if not Path(PATHS.raw(SET)).is_dir() and not Path(MADE).exists():
        raise WorkflowError(f"{CONFIGFILE}: sources.{SET}.path: there is no folder {Path(PATHS.raw(SET)).resolve()}")


def use(name):
    """The settings of a data set. Its folders are left out, so that renaming one runs nothing again."""
    settings = EXPERIMENT.sources.get(name, SourceSettings())
    return settings.model_copy(update={"folder": None, "path": None, "licence": ""})


def raw(name):
    """The files that a data set is made from. Of people's own the contents count (`files_of`), not the dates."""
    return ancient(PATHS.raw(name)) if name in OWN_SETS else PATHS.raw(name)


def files_of(name):
    """Digest of people's own files, so that a changed one makes again what was made from it; "" for public sets."""
    try:
        return own.digest_of(Path(PATHS.raw(name)), own.KNOWN / f"{name}.json") if name in OWN_SETS else ""
    except RecordProblem as problem:
        raise WorkflowError(f"{CONFIGFILE}: sources.{name}.path: {problem}")


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
