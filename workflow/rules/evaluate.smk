# Predictions first, then metrics from them: computing a metric again needs neither the model nor a GPU.


rule predict_text:
    input:
        llm=FOUNDATIONS["llm"],
        clip=FOUNDATIONS["clip"],
        sd=FOUNDATIONS["sd"],
        others=lambda wildcards: other_foundations(wildcards.model),
        checkpoints=checkpoints_of,
        benchmarks=benchmark_files,
        examples=lambda wildcards: examples_of(wildcards.benchmark),
    output:
        predictions=PATHS.predictions("{model}", "{benchmark}", "jsonl"),
    log:
        "logs/{run}/predict_{model}_{benchmark}.log",
    threads: cores
    resources:
        **CPU_JOB,
        gpu=gpus,
        nodes=1,
    params:
        launch=launch_one,
        experiment=configfile,
        seed=seed_flag,
        foundations=subpath(input.llm, parent=True),
        checkpoints=lambda wildcards, input: ["--checkpoints", *input.checkpoints] if input.checkpoints else [],
        examples=lambda wildcards, input: ["--shots", *input.examples] if input.examples else [],
        split=EXPERIMENT.evaluation.split,
        sample=lambda wildcards: ["--sample", wildcards.sample] if "sample" in wildcards.keys() else [],
        work="scratch/{run}/predictions",
        code=prediction_code,
        config=evaluation_settings,
    shell:
        "{params.launch} --job {log:q} predict --model {wildcards.model} --benchmark {wildcards.benchmark} --split {params.split}"
        " --config {params.experiment:q} {params.seed} --foundations {params.foundations:q} {params.checkpoints:q}"
        " --benchmarks {input.benchmarks:q} {params.examples:q} {params.sample:q} --work {params.work:q}"
        " --out {output.predictions:q} > {log:q} 2>&1"


use rule predict_text as predict_pictures with:
    output:
        predictions=PATHS.predictions("{model}", "{benchmark}", "tar"),


use rule predict_text as predict_attention with:
    output:
        predictions=PATHS.predictions("{model}", "{benchmark}", "safetensors"),


rule score:
    input:
        predictions=lambda wildcards: predictions(wildcards.model, wildcards.benchmark, wildcards.run),
        benchmarks=benchmark_files,
        clip=MEASURING["clip"],
        judge=MEASURING["judge"],
        judge2=MEASURING["judge2"],
    output:
        metrics=PATHS.metrics("{model}", "{benchmark}"),
        item_scores=PATHS.items("{model}", "{benchmark}"),
    log:
        "logs/{run}/score_{model}_{benchmark}.log",
    resources:
        **CPU_JOB,
    params:
        foundations=subpath(input.judge, parent=True),
        experiment=configfile,
        judgements=lambda wildcards, output: "scratch/judgements",
        judge=judge_settings,
        code=scoring_code,
    shell:
        "python -m dreamllm --job {log:q} score --benchmark {wildcards.benchmark} --predictions {input.predictions:q}"
        " --benchmarks {input.benchmarks:q} --foundations {params.foundations:q}"
        " --config {params.experiment:q} --judgements {params.judgements:q} --out {output.metrics:q}"
        " --items {output.item_scores:q} > {log:q} 2>&1"


# For a benchmark whose answers only a server has: its cell stays empty, and this is the file to submit there.
rule submission:
    input:
        predictions=lambda wildcards: predictions(wildcards.model, wildcards.benchmark, wildcards.run),
        benchmarks=benchmark_files,
    output:
        submission=PATHS.submission("{model}", "{benchmark}", "{suffix}"),
    log:
        "logs/{run}/submission_{model}_{benchmark}.{suffix}.log",
    wildcard_constraints:
        suffix="json|xlsx",
    resources:
        **CPU_JOB,
    params:
        code=scoring_code,
    shell:
        "python -m dreamllm --job {log:q} submission --predictions {input.predictions:q} --benchmarks {input.benchmarks:q}"
        " --out {output.submission:q} > {log:q} 2>&1"
