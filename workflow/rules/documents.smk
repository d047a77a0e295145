# What is made from the data sets that sources.smk fetches: shards of documents, instructions, benchmark files.

for SET in BUILT:

    rule:
        name:
            f"build_{SET}"
        input:
            raw=raw(SET),
            others=[PATHS.raw(other) for other in PUBLIC[SET].pictures_from],
            urls=[PATHS.source(SET, "urls")] if PUBLIC[SET].holds_addresses else [],
            pictures=[PATHS.source(SET, "pictures")] if PUBLIC[SET].holds_addresses else [],
        output:
            shards=directory(PATHS.source(SET, "shards")),
        log:
            f"logs/{NAME}/build_{SET}.log",
        threads: MACHINE.threads
        resources:
            **CPU_JOB,
        params:
            source=SET,
            experiment=configfile,
            manifest=manifest.MANIFEST,
            fetched=lambda wildcards, input: (
                ["--urls", *input.urls, "--pictures", *input.pictures] if input.urls else []
            ),
            others=pictures_from(SET),
            code=code_digest("dreamllm.sources.build", f"dreamllm.sources.readers.{PUBLIC[SET].format}"),
            config=digest(use(SET), PUBLIC[SET].format),
            files=lambda wildcards, set=SET: files_of(set),
        shell:
            "python -m dreamllm --job {log:q} build-shards --source {params.source} --manifest {params.manifest:q}"
            " --config {params.experiment:q} --raw {input.raw:q} {params.fetched:q} {params.others:q}"
            " --processes {threads} --out {output.shards:q} > {log:q} 2>&1"


for SET in WRITTEN:

    rule:
        name:
            f"write_{SET}"
        input:
            shards=PATHS.source(PUBLIC[SET].written_from, "shards"),
        output:
            shards=directory(PATHS.source(SET, "shards")),
        log:
            f"logs/{NAME}/write_{SET}.log",
        resources:
            **CPU_JOB,
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
            "python -m dreamllm --job {log:q} write-instructions --source {params.source} --manifest {params.manifest:q}"
            " --config {params.experiment:q} --shards {input.shards:q} --cache {params.cache:q}"
            " --out {output.shards:q} > {log:q} 2>&1"


rule place_benchmark:
    input:
        raw=lambda wildcards: raw(wildcards.source),
        others=lambda wildcards: [PATHS.raw(other) for other in PUBLIC[wildcards.source].pictures_from],
    output:
        benchmark=directory(PATHS.placed("{source}")),
    log:
        f"logs/{NAME}/place_{{source}}.log",
    wildcard_constraints:
        source="|".join(PLACED),
    resources:
        **CPU_JOB,
    params:
        experiment=configfile,
        manifest=manifest.MANIFEST,
        files=lambda wildcards: files_of(wildcards.source),
        others=lambda wildcards: pictures_from(wildcards.source),
        answers_on=lambda wildcards: PUBLIC[wildcards.source].answers_on,
        code=code_digest("dreamllm.evaluate.placing"),
    shell:
        "python -m dreamllm --job {log:q} place-benchmark --source {wildcards.source} --manifest {params.manifest:q}"
        " --config {params.experiment:q} --raw {input.raw:q} {params.others:q} --out {output.benchmark:q} > {log:q} 2>&1"


if USED:

    rule sources:
        input:
            [PATHS.source(name, "shards") for name in [*BUILT, *WRITTEN]],
            [PATHS.placed(name) for name in PLACED],
