# What is evaluated: models, benchmarks, their files, and the digests of the settings that they depend on.
import functools


def task_of(benchmark):
    """The facts about a benchmark, from its module in src/dreamllm/evaluate/tasks."""
    return tasks.about(EXPERIMENT.benchmark(benchmark).task)


def predictions(model, benchmark, run="{run}"):
    return f"results/predictions/{run}/{model}/{benchmark}.{task_of(benchmark).predictions}"


def placed(source):
    """Where the benchmark files of a public set are, or of the emoji world (None)."""
    return f"data/benchmarks/{source}" if source else WORLD["benchmarks"]


def examples_of(benchmark):
    """The folder with the worked examples of a few-shot benchmark, where it is not that of its questions."""
    source = EXPERIMENT.benchmark(benchmark).shots_from
    return [placed(source)] if source else []


def checkpoints_of(model, run):
    """Checkpoints that make up an evaluated model, in loading order."""
    stages = next(e.stages for e in EXPERIMENT.evaluations if e.model == model) or [model]
    if stages == ["sd_finetuned"]:
        return [checkpoint("sd_finetuned", run)]
    if stages[0] in FOUNDATION_MODELS:
        return []
    return [checkpoint(stage, run) for stage in EXPERIMENT.lineage(*stages)]


def learnt_in_context(*stages):
    """Whether one of the stages, or of those that they start from, learns from documents with pictures in context."""
    return any(
        "contexts" in EXPERIMENT.stages[stage].mixture or learnt_in_context(*EXPERIMENT.stages[stage].init)
        for stage in stages
        if stage in EXPERIMENT.stages
    )


def evaluation_settings(wildcards):
    """Digest of the settings that one benchmark sees."""
    rewrite = any(e.rewrite for e in EXPERIMENT.evaluations if e.model == wildcards.model)
    seen = {"split", "limit", "prompts", "seed", *task_of(wildcards.benchmark).settings, *(["text"] if rewrite else [])}
    of_its_own = [EXPERIMENT.benchmarks[name] for name in [wildcards.benchmark] if name in EXPERIMENT.benchmarks]
    settings = RUNS[wildcards.run].evaluation.model_dump(mode="json", include=seen)
    return digest(EXPERIMENT.model, settings, rewrite, *of_its_own)


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
    """Digest of what a score depends on besides the predictions: whoever judges free answers."""
    judge = EXPERIMENT.answer_judge
    return digest(judge.endpoint, judge.model, judge.judgings) if task_of(wildcards.benchmark).judged else ""


def sample(model, benchmark, number, run):
    """The predictions of a sample of several per prompt."""
    if number == 0:
        return predictions(model, benchmark, run)
    return f"results/predictions/{run}/{model}/samples/{benchmark}-{number}.tar"


def what_looks(wildcards):
    """Digest of what looks at pictures; Inception's own digest stands in each file of features."""
    return digest(EXPERIMENT.evaluation.pictures.features)


def inception_folder(wildcards, output):
    """A function of the output: the folder's name makes nothing again."""
    return EXPERIMENT.evaluation.pictures.inception


EVALUATED = [(e.model, benchmark) for e in EXPERIMENT.evaluations for benchmark in e.benchmarks]
METRICS = [f"results/metrics/{run}/{model}/{benchmark}.json" for run in RUNS for model, benchmark in EVALUATED]
ITEMS = [f"results/items/{run}/{model}/{benchmark}.json" for run in RUNS for model, benchmark in EVALUATED]
if EXPERIMENT.evaluation.pictures:
    METRICS += [
        f"results/metrics/{run}/{model}/pictures/{name}.json"
        for run in RUNS
        for model, name in EVALUATED
        if task_of(name).image_metrics
    ]


def judgements(model, run):
    """What people said of a model's documents: files that they sent back."""
    return sorted(str(path) for path in Path(f"data/human/{run}/{model}").glob("*.json"))


JUDGED = [
    f"results/metrics/{run}/{model}/human.json"
    for run in RUNS
    for model, benchmark in EVALUATED
    if benchmark == "stories" and judgements(model, run)
]
