# Several pictures per prompt, FID and CLIP score (docs/pictures.md), if the configuration has a section
# `evaluation.pictures`. Sample 0 is the prediction of `predict_pictures`.
if EXPERIMENT.evaluation.pictures:
    CLIP = EXPERIMENT.evaluation.pictures.clip or MEASURING["clip"]

    use rule predict_text as predict_sample with:
        output:
            predictions=PATHS.sample("{model}", "{benchmark}", "{sample}"),
        log:
            "logs/{run}/predict_{model}_{benchmark}_{sample}.log",

    rule features:
        input:
            predictions=lambda wildcards: PATHS.sample(wildcards.model, wildcards.benchmark, wildcards.sample),
            benchmarks=benchmark_files,
            clip=CLIP,
        output:
            features=PATHS.features("{model}", "{benchmark}", "{sample}"),
        log:
            "logs/{run}/features_{model}_{benchmark}_{sample}.log",
        threads: MACHINE.threads
        resources:
            **GPU_JOB,
        params:
            experiment=configfile,
            inception=inception_folder,
            code=code_digest("dreamllm.evaluate.features"),
            config=features_settings,
        shell:
            "python -m dreamllm --job {log:q} features --config {params.experiment:q} --benchmark {wildcards.benchmark}"
            " --predictions {input.predictions:q} --benchmarks {input.benchmarks:q} --clip {input.clip:q}"
            " --threads {threads} --out {output.features:q} > {log:q} 2>&1"

    rule real_statistics:
        input:
            benchmarks=benchmark_files,
            clip=CLIP,
        output:
            statistics=PATHS.real_features("{benchmark}"),
        log:
            "logs/{run}/real_statistics_{benchmark}.log",
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
            "python -m dreamllm --job {log:q} features --config {params.experiment:q} --benchmark {wildcards.benchmark}"
            " --benchmarks {input.benchmarks:q} --clip {input.clip:q} --threads {threads}"
            " --out {output.statistics:q} > {log:q} 2>&1"

    rule score_pictures:
        input:
            features=[
                PATHS.features("{model}", "{benchmark}", number)
                for number in range(EXPERIMENT.evaluation.pictures.samples)
            ],
            statistics=PATHS.real_features("{benchmark}"),
        output:
            metrics=PATHS.picture_metrics("{model}", "{benchmark}"),
        log:
            "logs/{run}/score_pictures_{model}_{benchmark}.log",
        resources:
            **CPU_JOB,
        params:
            code=code_digest("dreamllm.evaluate.score_pictures"),
        shell:
            "python -m dreamllm --job {log:q} score-pictures --features {input.features:q} --statistics {input.statistics:q}"
            " --out {output.metrics:q} > {log:q} 2>&1"
