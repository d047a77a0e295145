# What is made of the fetched sets of sources.smk: shards of documents, instructions, benchmarks.

for SET in BUILT:

    rule:
        name:
            f"build_{SET}"
        input:
            raw=raw(SET),
            others=[raw(other) for other in PUBLIC[SET].pictures_from],
            urls=[source_folder(SET, "urls")] if PUBLIC[SET].format in manifest.BY_URL else [],
            pictures=[source_folder(SET, "pictures")] if PUBLIC[SET].format in manifest.BY_URL else [],
        output:
            shards=directory(source_folder(SET, "shards")),
        log:
            f"logs/{NAME}/build_{SET}.log",
        benchmark:
            f"benchmarks/{NAME}/build_{SET}.tsv"
        conda:
            ENVIRONMENT
        threads: MACHINE.threads
        resources:
            gpu=0,
            mem_mb=MACHINE.memory_mb,
            runtime=MACHINE.minutes,
        params:
            source=SET,
            experiment=configfile,
            manifest=manifest.MANIFEST,
            fetched=lambda wildcards, input: (
                ["--urls", *input.urls, "--pictures", *input.pictures] if input.urls else []
            ),
            others=pictures_from(SET),
            code=code_digest("dreamllm.sources.build"),
            config=digest(use(SET), PUBLIC[SET].format),
        shell:
            "python -m dreamllm build-shards --source {params.source} --manifest {params.manifest:q}"
            " --config {params.experiment:q} --raw {input.raw:q} {params.fetched:q} {params.others:q}"
            " --processes {threads} --out {output.shards:q} > {log:q} 2>&1"


for SET in WRITTEN:

    rule:
        name:
            f"write_{SET}"
        input:
            shards=source_folder(PUBLIC[SET].written_from, "shards"),
        output:
            shards=directory(source_folder(SET, "shards")),
        log:
            f"logs/{NAME}/write_{SET}.log",
        benchmark:
            f"benchmarks/{NAME}/write_{SET}.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            gpu=0,
            mem_mb=MACHINE.memory_mb,
            runtime=MACHINE.minutes,
        params:
            source=SET,
            experiment=configfile,
            manifest=manifest.MANIFEST,
            cache=f"scratch/instructions/{SET}",
            code=code_digest("dreamllm.sources.instruct"),
            config=digest(
                EXPERIMENT.seed,
                use(SET),
                EXPERIMENT.instruction_writer.endpoint,
                EXPERIMENT.instruction_writer.model,
            ),
        shell:
            "python -m dreamllm write-instructions --source {params.source} --manifest {params.manifest:q}"
            " --config {params.experiment:q} --shards {input.shards:q} --cache {params.cache:q}"
            " --out {output.shards:q} > {log:q} 2>&1"


for SET in PLACED:

    rule:
        name:
            f"place_{SET}"
        input:
            raw=raw(SET),
            others=[raw(other) for other in PUBLIC[SET].pictures_from],
        output:
            benchmark=directory(f"data/benchmarks/{SET}"),
        log:
            f"logs/{NAME}/place_{SET}.log",
        benchmark:
            f"benchmarks/{NAME}/place_{SET}.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            gpu=0,
            mem_mb=MACHINE.memory_mb,
            runtime=MACHINE.minutes,
        params:
            source=SET,
            manifest=manifest.MANIFEST,
            others=pictures_from(SET),
            answers_on=PUBLIC[SET].answers_on,
            code=code_digest("dreamllm.evaluate.placing"),
        shell:
            "python -m dreamllm place-benchmark --source {params.source} --manifest {params.manifest:q}"
            " --raw {input.raw:q} {params.others:q} --out {output.benchmark:q} > {log:q} 2>&1"


if USED:

    rule sources:
        input:
            [source_folder(name, "shards") for name in [*BUILT, *WRITTEN]],
            [f"data/benchmarks/{name}" for name in PLACED],
