# What is evaluated: models and benchmarks, their files, what their jobs may use, and the digests of the settings that
# they depend on.
import functools

from dreamllm.config.evaluation import WITHOUT_EFFECT


def task_of(benchmark):
    """The facts about a benchmark, from its module in src/dreamllm/evaluate/tasks."""
    return tasks.about(EXPERIMENT.benchmark(benchmark).task)


def is_timed(wildcards):
    """Whether a prediction measures time, so that no other job may run beside it."""
    return "benchmark" in wildcards.keys() and task_of(wildcards.benchmark).timed


def gpus(wildcards):
    """GPUs of a job other than a DreamLLM training: one, or as many as a prediction's items are divided among."""
    divided = "benchmark" in wildcards.keys() and task_of(wildcards.benchmark).parallel
    return MACHINE.gpus_per_prediction if MACHINE.gpus and divided else min(1, MACHINE.gpus)


def cores(wildcards):
    """Cores that a prediction reserves: all of them for a timed job without a GPU, so that nothing runs beside it."""
    alone = is_timed(wildcards) and not MACHINE.gpus
    return max(MACHINE.threads, workflow.resource_settings.cores or 0) if alone else MACHINE.threads


def predictions(model, benchmark, run="{run}"):
    """The prediction file of a model on a benchmark."""
    return Paths(EXPERIMENT, run).predictions(model, benchmark, task_of(benchmark).predictions)


def benchmark_files(wildcards):
    """The files of the benchmark of a job."""
    return PATHS.benchmark_files(wildcards.benchmark)


def examples_of(benchmark):
    """The folder with the worked examples of a few-shot benchmark, if it is not the folder of its questions."""
    source = EXPERIMENT.benchmark(benchmark).shots_from
    return [PATHS.placed(source)] if source else []


def checkpoints_of(wildcards):
    """Checkpoints that make up the evaluated model of a job, in loading order."""
    return [PATHS.checkpoint(stage) for stage in EXPERIMENT.stages_of(wildcards.model)]


def learnt_in_context(*stages):
    """Whether one of these stages or their ancestors trains on documents with pictures in context."""
    return any(
        "contexts" in EXPERIMENT.stages[stage].mixture or learnt_in_context(*EXPERIMENT.stages[stage].init)
        for stage in stages
        if stage in EXPERIMENT.stages
    )


def evaluation_settings(wildcards):
    """Digest of the settings that the predictions of one benchmark depend on."""
    rewrite = any(e.rewrite for e in EXPERIMENT.evaluations if e.model == wildcards.model)
    seen = {"split", "limit", "prompts", "seed", *task_of(wildcards.benchmark).settings, *(["text"] if rewrite else [])}
    of_its_own = [EXPERIMENT.benchmarks[name] for name in [wildcards.benchmark] if name in EXPERIMENT.benchmarks]
    settings = RUNS[wildcards.run].evaluation.model_dump(mode="json", include=seen, exclude=WITHOUT_EFFECT)
    return digest(EXPERIMENT.precision, EXPERIMENT.model, settings, rewrite, *of_its_own)


@functools.cache
def code_of_task(module, task, without):
    """Digest of the code of `module` and of one benchmark's module, without the functions `without` of the latter."""
    return code_digest(module, f"dreamllm.evaluate.tasks.{task}", without=without)


def prediction_code(wildcards):
    """Digest of the code that predicts one benchmark: an edit of another one, or of a metric, does not change it."""
    return code_of_task("dreamllm.evaluate.predict", EXPERIMENT.benchmark(wildcards.benchmark).task, tasks.SCORING)


def scoring_code(wildcards):
    """Digest of the code that scores one benchmark."""
    return code_of_task("dreamllm.evaluate.score", EXPERIMENT.benchmark(wildcards.benchmark).task, tasks.PREDICTING)


def judge_settings(wildcards):
    """Digest of the language model that judges free answers, or of the settings of the object detector; empty for
    benchmarks that are scored without."""
    judge, task = EXPERIMENT.answer_judge, task_of(wildcards.benchmark)
    if task.detects:
        return digest(EXPERIMENT.evaluation.detection)
    return digest(judge.endpoint, judge.model, judge.judgings) if task.judged else ""


def features_settings(wildcards):
    """Digest of the settings of picture features; each file of features holds the digest of Inception itself."""
    return digest(EXPERIMENT.evaluation.pictures.features)


def inception_folder(wildcards, output):
    """The folder of Inception, as a function of the output: renaming it runs nothing again."""
    return EXPERIMENT.evaluation.pictures.inception


EVALUATED = [(e.model, benchmark) for e in EXPERIMENT.evaluations for benchmark in e.benchmarks]
METRICS = of_evaluations(PATHS.metrics)
ITEMS = of_evaluations(PATHS.items)
if EXPERIMENT.evaluation.pictures:
    METRICS += of_evaluations(PATHS.picture_metrics, lambda benchmark: task_of(benchmark).image_metrics)


def judgements(model, run):
    """People's judgements of a model's documents: the files that they sent back."""
    return sorted(str(path) for path in Path(Paths(EXPERIMENT, run).ratings(model)).glob("*.json"))


JUDGED = [
    Paths(EXPERIMENT, run).metrics(one.model, "human")
    for run, experiment in RUNS.items()
    for one in experiment.evaluations
    if "stories" in one.benchmarks and judgements(one.model, run)
]


def losses(wildcards, input):
    """The losses of each stage, for the flag --losses."""
    return [f"{Path(checkpoint).name}={checkpoint}/losses.csv" for checkpoint in input.checkpoints]
