# What people say of the model's documents (docs/human.md): a page to judge on, and the scores of what came back.
# Not part of results/tables until there are judgements in data/human/NAME/MODEL/.


rule human_page:
    input:
        predictions=f"results/predictions/{{run}}/{{model}}/stories.tar",
        benchmarks=WORLD["benchmarks"],
    output:
        page=directory(f"results/human/{{run}}/{{model}}"),
    log:
        f"logs/{{run}}/human_page_{{model}}.log",
    benchmark:
        f"benchmarks/{{run}}/human_page_{{model}}.tsv"
    resources:
        **CPU_JOB,
    params:
        seed=EXPERIMENT.evaluation.seed,
        code=code_digest("dreamllm.evaluate.human.rating_form"),
    shell:
        "python -m dreamllm human-page --predictions {input.predictions:q} --benchmarks {input.benchmarks:q}"
        " --seed {params.seed} --out {output.page:q} > {log:q} 2>&1"


ruleorder: human_score > score


rule human_score:
    input:
        page=f"results/human/{{run}}/{{model}}",
        judgements=lambda wildcards: judgements(wildcards.model, wildcards.run),
    output:
        metrics=f"results/metrics/{{run}}/{{model}}/human.json",
    log:
        f"logs/{{run}}/human_score_{{model}}.log",
    benchmark:
        f"benchmarks/{{run}}/human_score_{{model}}.tsv"
    resources:
        **CPU_JOB,
    params:
        code=code_digest("dreamllm.evaluate.human.score"),
    shell:
        "python -m dreamllm human-score --key {input.page:q}/key.json --judgements {input.judgements:q}"
        " --out {output.metrics:q} > {log:q} 2>&1"
