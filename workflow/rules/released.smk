# Models of paper/released.yaml, downloaded at pinned revisions: the public foundation models, or a checkpoint that the
# authors released, which is converted into foundations and the checkpoint `released` for evaluations and stages.
if EXPERIMENT.foundations.source == "hub":

    rule fetch_foundation:
        output:
            folder=directory(PATHS.foundation("{part}")),
        log:
            f"logs/{NAME}/fetch_foundation_{{part}}.log",
        wildcard_constraints:
            part="|".join(FOUNDATIONS),
        resources:
            **CPU_JOB,
        params:
            manifest=RELEASES,
            model=lambda wildcards: getattr(EXPERIMENT.foundations, wildcards.part),
            release=lambda wildcards: release(getattr(EXPERIMENT.foundations, wildcards.part)),
        shell:
            "python -m dreamllm --job {log:q} fetch-released --manifest {params.manifest:q} --name {params.model:q}"
            " --out {output.folder:q} > {log:q} 2>&1"


if IMPORTED:

    rule fetch_released:
        output:
            folder=directory(PATHS.released("{name}")),
        log:
            f"logs/{NAME}/fetch_released_{{name}}.log",
        wildcard_constraints:
            name="[A-Za-z0-9._-]+",
        resources:
            **CPU_JOB,
        params:
            manifest=RELEASES,
            release=lambda wildcards: release(wildcards.name),
        shell:
            "python -m dreamllm --job {log:q} fetch-released --manifest {params.manifest:q} --name {wildcards.name}"
            " --out {output.folder:q} > {log:q} 2>&1"

    rule import_released:
        input:
            source=PATHS.released(EXPERIMENT.foundations.checkpoint),
            clip=PATHS.released(EXPERIMENT.foundations.clip),
            sd=PATHS.released(EXPERIMENT.foundations.sd),
        output:
            **{part: directory(folder) for part, folder in FOUNDATIONS.items()},
            checkpoint=directory(PATHS.checkpoint(RELEASED)),
        log:
            f"logs/{NAME}/import_released.log",
        threads: MACHINE.threads
        resources:
            **CPU_JOB,
        params:
            experiment=configfile,
            foundations=subpath(output.llm, parent=True),
            code=code_digest("dreamllm.official.importer"),
            config=digest(EXPERIMENT.seed, EXPERIMENT.model),
        shell:
            "python -m dreamllm --job {log:q} import-official --source {input.source:q} --clip {input.clip:q} --sd {input.sd:q}"
            " --config {params.experiment:q} --foundations {params.foundations:q} --out {output.checkpoint:q}"
            " > {log:q} 2>&1"
