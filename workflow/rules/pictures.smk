# Several pictures per prompt, FID and CLIP score (docs/pictures.md). Sample 0 is what `predict_pictures` draws. Without
# the section `evaluation.pictures` there are no rules here.
if EXPERIMENT.evaluation.pictures:
    LOOKING = EXPERIMENT.evaluation.pictures.clip or MEASURING["clip"]

    use rule predict_text as predict_sample with:
        output:
            predictions=f"results/predictions/{{run}}/{{model}}/samples/{{benchmark}}-{{sample}}.tar",
        log:
            f"logs/{{run}}/predict_{{model}}_{{benchmark}}_{{sample}}.log",
        benchmark:
            f"benchmarks/{{run}}/predict_{{model}}_{{benchmark}}_{{sample}}.tsv"

    rule features:
        input:
            predictions=lambda wildcards: sample(
                wildcards.model, wildcards.benchmark, int(wildcards.sample), wildcards.run
            ),
            benchmarks=lambda wildcards: placed(EXPERIMENT.benchmark(wildcards.benchmark).source),
            clip=LOOKING,
        output:
            features=f"results/features/{{run}}/{{model}}/{{benchmark}}-{{sample}}.safetensors",
        log:
            f"logs/{{run}}/features_{{model}}_{{benchmark}}_{{sample}}.log",
        benchmark:
            f"benchmarks/{{run}}/features_{{model}}_{{benchmark}}_{{sample}}.tsv"
        threads: MACHINE.threads
        resources:
            **GPU_JOB,
        params:
            experiment=configfile,
            inception=inception_folder,
            code=code_digest("dreamllm.evaluate.features"),
            config=what_looks,
        shell:
            "python -m dreamllm features --config {params.experiment:q} --benchmark {wildcards.benchmark}"
            " --predictions {input.predictions:q} --benchmarks {input.benchmarks:q} --clip {input.clip:q}"
            " --threads {threads} --out {output.features:q} > {log:q} 2>&1"

    rule real_statistics:
        input:
            benchmarks=lambda wildcards: placed(EXPERIMENT.benchmark(wildcards.benchmark).source),
            clip=LOOKING,
        output:
            statistics=f"results/features/{{run}}/real_{{benchmark}}.safetensors",
        log:
            f"logs/{{run}}/real_statistics_{{benchmark}}.log",
        benchmark:
            f"benchmarks/{{run}}/real_statistics_{{benchmark}}.tsv"
        threads: MACHINE.threads
        resources:
            **GPU_JOB,
        params:
            experiment=configfile,
            inception=inception_folder,
            code=code_digest("dreamllm.evaluate.features"),
            config=digest(
                EXPERIMENT.evaluation.pictures.features,
                EXPERIMENT.evaluation.split,
                EXPERIMENT.evaluation.limit,
            ),
        shell:
            "python -m dreamllm features --config {params.experiment:q} --benchmark {wildcards.benchmark}"
            " --benchmarks {input.benchmarks:q} --clip {input.clip:q} --threads {threads}"
            " --out {output.statistics:q} > {log:q} 2>&1"

    rule score_pictures:
        input:
            features=[
                f"results/features/{{run}}/{{model}}/{{benchmark}}-{number}.safetensors"
                for number in range(EXPERIMENT.evaluation.pictures.samples)
            ],
            statistics=f"results/features/{{run}}/real_{{benchmark}}.safetensors",
        output:
            metrics=f"results/metrics/{{run}}/{{model}}/pictures/{{benchmark}}.json",
        log:
            f"logs/{{run}}/score_pictures_{{model}}_{{benchmark}}.log",
        benchmark:
            f"benchmarks/{{run}}/score_pictures_{{model}}_{{benchmark}}.tsv"
        resources:
            **CPU_JOB,
        params:
            code=code_digest("dreamllm.evaluate.score_pictures"),
        shell:
            "python -m dreamllm score-pictures --features {input.features:q} --statistics {input.statistics:q}"
            " --out {output.metrics:q} > {log:q} 2>&1"
