# Raw predictions first, then metrics: a metric can be made again from its predictions without a model or a GPU.


rule predict_text:
    input:
        llm=FOUNDATIONS["llm"],
        clip=FOUNDATIONS["clip"],
        sd=FOUNDATIONS["sd"],
        checkpoints=lambda wildcards: checkpoints_of(wildcards.model),
        benchmarks=WORLD["benchmarks"],
    output:
        predictions=f"results/predictions/{NAME}/{{model}}/{{benchmark}}.jsonl",
    log:
        f"logs/{NAME}/predict_{{model}}_{{benchmark}}.log",
    benchmark:
        f"benchmarks/{NAME}/predict_{{model}}_{{benchmark}}.tsv"
    conda:
        ENVIRONMENT
    threads: MACHINE.threads
    resources:
        gpu=min(1, MACHINE.gpus),
        mem_mb=MACHINE.memory_mb,
        runtime=MACHINE.minutes,
    params:
        experiment=configfile,
        foundations=subpath(input.llm, parent=True),
        checkpoints=lambda wildcards, input: ["--checkpoints", *input.checkpoints] if input.checkpoints else [],
        split=EXPERIMENT.evaluation.split,
        sample=lambda wildcards: ["--sample", wildcards.sample] if "sample" in wildcards.keys() else [],
        work=f"scratch/{NAME}/pictures",
        code=code_digest("dreamllm.evaluate.predict"),
        config=evaluation_settings,
    shell:
        "python -m dreamllm predict --model {wildcards.model} --benchmark {wildcards.benchmark} --split {params.split}"
        " --config {params.experiment:q} --foundations {params.foundations:q} {params.checkpoints:q}"
        " --benchmarks {input.benchmarks:q} {params.sample:q} --work {params.work:q}"
        " --out {output.predictions:q} > {log:q} 2>&1"


use rule predict_text as predict_pictures with:
    output:
        predictions=f"results/predictions/{NAME}/{{model}}/{{benchmark}}.tar",


rule score:
    input:
        predictions=lambda wildcards: predictions(wildcards.model, wildcards.benchmark),
        benchmarks=WORLD["benchmarks"],
        clip=MEASURING["clip"],
        judge=MEASURING["judge"],
    output:
        metrics=f"results/metrics/{NAME}/{{model}}/{{benchmark}}.json",
    log:
        f"logs/{NAME}/score_{{model}}_{{benchmark}}.log",
    benchmark:
        f"benchmarks/{NAME}/score_{{model}}_{{benchmark}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=MACHINE.memory_mb,
        runtime=MACHINE.minutes,
    params:
        foundations=subpath(input.judge, parent=True),
        code=code_digest("dreamllm.evaluate.score"),
    shell:
        "python -m dreamllm score --benchmark {wildcards.benchmark} --predictions {input.predictions:q}"
        " --benchmarks {input.benchmarks:q} --foundations {params.foundations:q}"
        " --out {output.metrics:q} > {log:q} 2>&1"
