# People's judgements of the model's documents (docs/human.md): the form that they fill in, and the scores of the files
# that they send back. Part of results/tables once data/human/NAME/MODEL/ has such files.


rule human_page:
    input:
        predictions=PATHS.predictions("{model}", "stories", "tar"),
        benchmarks=WORLD["benchmarks"],
    output:
        page=directory(PATHS.rating_form("{model}")),
    log:
        "logs/{run}/human_page_{model}.log",
    resources:
        **CPU_JOB,
    params:
        seed=EXPERIMENT.evaluation.seed,
        code=code_digest("dreamllm.evaluate.human.rating_form"),
    shell:
        "python -m dreamllm --job {log:q} human-page --predictions {input.predictions:q} --benchmarks {input.benchmarks:q}"
        " --seed {params.seed} --out {output.page:q} > {log:q} 2>&1"


ruleorder: human_score > score  # both could make human.json


rule human_score:
    input:
        page=PATHS.rating_form("{model}"),
        judgements=lambda wildcards: judgements(wildcards.model, wildcards.run),
    output:
        metrics=PATHS.metrics("{model}", "human"),
    log:
        "logs/{run}/human_score_{model}.log",
    resources:
        **CPU_JOB,
    params:
        code=code_digest("dreamllm.evaluate.human.score"),
    shell:
        "python -m dreamllm --job {log:q} human-score --key {input.page:q}/key.json --judgements {input.judgements:q}"
        " --out {output.metrics:q} > {log:q} 2>&1"
