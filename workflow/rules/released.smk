# Models of paper/released.yaml, fetched at their pinned revisions: public foundations, or a checkpoint that the authors
# released, as foundations and the checkpoint `released`, which evaluations and stages name.
if EXPERIMENT.foundations.source == "hub":

    rule fetch_foundation:
        output:
            folder=directory(f"{EXPERIMENT.foundations.folder}/{{part}}"),
        log:
            f"logs/{NAME}/fetch_foundation_{{part}}.log",
        benchmark:
            f"benchmarks/{NAME}/fetch_foundation_{{part}}.tsv"
        wildcard_constraints:
            part="|".join(FOUNDATIONS),
        resources:
            **CPU_JOB,
        params:
            manifest=RELEASES,
            model=lambda wildcards: getattr(EXPERIMENT.foundations, wildcards.part),
            release=lambda wildcards: release(getattr(EXPERIMENT.foundations, wildcards.part)),
        shell:
            "python -m dreamllm fetch-released --manifest {params.manifest:q} --name {params.model:q}"
            " --out {output.folder:q} > {log:q} 2>&1"


if IMPORTED:
    DOWNLOADS = "data/released"

    rule fetch_released:
        output:
            folder=directory(f"{DOWNLOADS}/{{name}}"),
        log:
            f"logs/{NAME}/fetch_released_{{name}}.log",
        benchmark:
            f"benchmarks/{NAME}/fetch_released_{{name}}.tsv"
        wildcard_constraints:
            name="[A-Za-z0-9._-]+",
        resources:
            **CPU_JOB,
        params:
            manifest=RELEASES,
            release=lambda wildcards: release(wildcards.name),
        shell:
            "python -m dreamllm fetch-released --manifest {params.manifest:q} --name {wildcards.name}"
            " --out {output.folder:q} > {log:q} 2>&1"

    rule import_released:
        input:
            source=f"{DOWNLOADS}/{EXPERIMENT.foundations.checkpoint}",
            clip=f"{DOWNLOADS}/{EXPERIMENT.foundations.clip}",
            sd=f"{DOWNLOADS}/{EXPERIMENT.foundations.sd}",
        output:
            **{part: directory(folder) for part, folder in FOUNDATIONS.items()},
            checkpoint=directory(checkpoint(RELEASED)),
        log:
            f"logs/{NAME}/import_released.log",
        benchmark:
            f"benchmarks/{NAME}/import_released.tsv"
        threads: MACHINE.threads
        resources:
            **CPU_JOB,
        params:
            experiment=configfile,
            foundations=subpath(output.llm, parent=True),
            code=code_digest("dreamllm.official.importer"),
            config=digest(EXPERIMENT.seed, EXPERIMENT.model),
        shell:
            "python -m dreamllm import-official --source {input.source:q} --clip {input.clip:q} --sd {input.sd:q}"
            " --config {params.experiment:q} --foundations {params.foundations:q} --out {output.checkpoint:q}"
            " > {log:q} 2>&1"
