# The emoji world's language model, CLIP, Stable Diffusion and judge: fetched by digest, or trained from scratch, as
# `foundations.source` of the configuration says. Both make the same folders. Where DreamLLM is built from other
# foundations (released.smk), these are used for measuring only.

if FETCHED.source == "fetch":

    rule fetch_foundations:
        output:
            PATHS.instrument("card.json"),
            **{part: directory(folder) for part, folder in MEASURING.items()},
        log:
            f"logs/{NAME}/fetch_foundations.log",
        resources:
            **CPU_JOB,
        params:
            out=subpath(output.llm, parent=True),
            experiment=configfile,
            config=digest(FETCHED.md5, FETCHED.sha256, EXPERIMENT.world.pictograms, EXPERIMENT.world.registers),
        shell:
            "python -m dreamllm --job {log:q} fetch-foundations --config {params.experiment:q} --out {params.out:q}"
            " > {log:q} 2>&1"

else:
    # Folder and module of each part. The autoencoder (vae) is trained before Stable Diffusion and copied into sd/, as is
    # CLIP's text tower. The autoencoder's own folder is among the checkpoints, so this is one rule per part instead of
    # one with a wildcard.
    FOLDERS = {**FOUNDATIONS, "vae": PATHS.checkpoint("vae")}
    MODULES = {
        "llm": "language",
        "qwen": "language",
        "clip": "clip",
        "vae": "vae",
        "sd": "diffusion",
        "flow": "flow",
        "judge": "scene_classifier",
        "judge2": "scene_classifier",
    }
    for PART in FOLDERS:

        rule:
            name:
                f"train_foundation_{PART}"
            input:
                parts=[FOLDERS["vae"], FOLDERS["clip"]] if PART in ("sd", "flow") else [],
            output:
                folder=directory(FOLDERS[PART]),
            log:
                f"logs/{NAME}/train_foundation_{PART}.log",
            threads: MACHINE.threads
            resources:
                **GPU_JOB,
            params:
                launch=launch_one,
                experiment=configfile,
                part=PART,
                parts=lambda wildcards, input: ["--inputs", *input.parts] if input.parts else [],
                code=code_digest(f"dreamllm.emoji.foundations.{MODULES[PART]}"),
                config=digest(
                    EXPERIMENT.seed,
                    EXPERIMENT.world.picture_side,
                    EXPERIMENT.world.pictograms,
                    EXPERIMENT.world.registers,
                    getattr(EXPERIMENT.foundations, PART),
                ),
            shell:
                "{params.launch} --job {log:q} train-foundation --part {params.part} --config {params.experiment:q}"
                " {params.parts:q} --out {output.folder:q} > {log:q} 2>&1"

    rule measure_foundations:
        input:
            **MEASURING,
        output:
            card=PATHS.instrument("card.json"),
        log:
            f"logs/{NAME}/measure_foundations.log",
        threads: MACHINE.threads
        resources:
            **GPU_JOB,
        params:
            launch=launch_one,
            experiment=configfile,
            foundations=subpath(output.card, parent=True),
            code=code_digest("dreamllm.emoji.foundations.figures"),
            config=digest(EXPERIMENT.world, EXPERIMENT.evaluation.drawing),
        shell:
            "{params.launch} --job {log:q} measure-foundations --config {params.experiment:q}"
            " --foundations {params.foundations:q} --out {output.card:q} > {log:q} 2>&1"
