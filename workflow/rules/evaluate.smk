# Raw predictions first, then metrics: a metric can be made again from its predictions without a model or a GPU.


rule predict_text:
    input:
        llm=FOUNDATIONS["llm"],
        clip=FOUNDATIONS["clip"],
        sd=FOUNDATIONS["sd"],
        checkpoints=lambda wildcards: checkpoints_of(wildcards.model, wildcards.run),
        benchmarks=lambda wildcards: placed(EXPERIMENT.benchmark(wildcards.benchmark).source),
        examples=lambda wildcards: examples_of(wildcards.benchmark),
    output:
        predictions=f"results/predictions/{{run}}/{{model}}/{{benchmark}}.jsonl",
    log:
        f"logs/{{run}}/predict_{{model}}_{{benchmark}}.log",
    benchmark:
        f"benchmarks/{{run}}/predict_{{model}}_{{benchmark}}.tsv"
    threads: cores
    resources:
        **GPU_JOB,
    params:
        launch=launch_one,
        experiment=configfile,
        seed=seed_flag,
        foundations=subpath(input.llm, parent=True),
        checkpoints=lambda wildcards, input: ["--checkpoints", *input.checkpoints] if input.checkpoints else [],
        examples=lambda wildcards, input: ["--shots", *input.examples] if input.examples else [],
        split=EXPERIMENT.evaluation.split,
        sample=lambda wildcards: ["--sample", wildcards.sample] if "sample" in wildcards.keys() else [],
        work="scratch/{run}/pictures",
        code=prediction_code,
        config=evaluation_settings,
    shell:
        "{params.launch} predict --model {wildcards.model} --benchmark {wildcards.benchmark} --split {params.split}"
        " --config {params.experiment:q} {params.seed} --foundations {params.foundations:q} {params.checkpoints:q}"
        " --benchmarks {input.benchmarks:q} {params.examples:q} {params.sample:q} --work {params.work:q}"
        " --out {output.predictions:q} > {log:q} 2>&1"


use rule predict_text as predict_pictures with:
    output:
        predictions=f"results/predictions/{{run}}/{{model}}/{{benchmark}}.tar",


use rule predict_text as predict_attention with:
    output:
        predictions=f"results/predictions/{{run}}/{{model}}/{{benchmark}}.safetensors",


rule score:
    input:
        predictions=lambda wildcards: predictions(wildcards.model, wildcards.benchmark, wildcards.run),
        benchmarks=lambda wildcards: placed(EXPERIMENT.benchmark(wildcards.benchmark).source),
        clip=MEASURING["clip"],
        judge=MEASURING["judge"],
    output:
        metrics=f"results/metrics/{{run}}/{{model}}/{{benchmark}}.json",
        item_scores=f"results/items/{{run}}/{{model}}/{{benchmark}}.json",
    log:
        f"logs/{{run}}/score_{{model}}_{{benchmark}}.log",
    benchmark:
        f"benchmarks/{{run}}/score_{{model}}_{{benchmark}}.tsv"
    resources:
        **CPU_JOB,
    params:
        foundations=subpath(input.judge, parent=True),
        experiment=configfile,
        judgements=lambda wildcards, output: "scratch/judgements",
        judge=judge_settings,
        code=scoring_code,
    shell:
        "python -m dreamllm score --benchmark {wildcards.benchmark} --predictions {input.predictions:q}"
        " --benchmarks {input.benchmarks:q} --foundations {params.foundations:q}"
        " --config {params.experiment:q} --judgements {params.judgements:q} --out {output.metrics:q}"
        " --items {output.item_scores:q} > {log:q} 2>&1"


# Where a server alone has the answers, the cell is empty, and this is the file that the server takes.
rule submission:
    input:
        predictions=lambda wildcards: predictions(wildcards.model, wildcards.benchmark, wildcards.run),
        benchmarks=lambda wildcards: placed(EXPERIMENT.benchmark(wildcards.benchmark).source),
    output:
        submission=f"results/submissions/{{run}}/{{model}}/{{benchmark}}.{{suffix}}",
    log:
        f"logs/{{run}}/submission_{{model}}_{{benchmark}}.{{suffix}}.log",
    benchmark:
        f"benchmarks/{{run}}/submission_{{model}}_{{benchmark}}.{{suffix}}.tsv"
    wildcard_constraints:
        suffix="json|xlsx",
    resources:
        **CPU_JOB,
    params:
        code=scoring_code,
    shell:
        "python -m dreamllm submission --predictions {input.predictions:q} --benchmarks {input.benchmarks:q}"
        " --out {output.submission:q} > {log:q} 2>&1"
