# The emoji world's language model, CLIP, Stable Diffusion and judge: fetched by digest, or trained from scratch, as
# `foundations.source` of the configuration says. Both make the same folders. Where DreamLLM is built from other
# foundations (released.smk), these are used for measuring only.

if FETCHED.source == "fetch":

    rule fetch_foundations:
        output:
            **{part: directory(folder) for part, folder in MEASURING.items()},
        log:
            f"logs/{NAME}/fetch_foundations.log",
        resources:
            **CPU_JOB,
        params:
            out=subpath(output.llm, parent=True),
            store=lambda wildcards, output: FETCHED.store,  # a function of the output: moving it runs nothing again
            md5=FETCHED.md5,
            sha256=FETCHED.sha256,
        shell:
            "python -m dreamllm --job {log:q} fetch-foundations --store {params.store:q} --md5 {params.md5} --sha256 {params.sha256}"
            " --out {params.out:q} > {log:q} 2>&1"

else:
    # Folder and module of each part. The autoencoder (vae) is trained before Stable Diffusion and copied into sd/. Its
    # own folder is among the checkpoints, so this is one rule per part instead of one with a wildcard.
    FOLDERS = {**FOUNDATIONS, "vae": PATHS.checkpoint("vae")}
    MODULES = {"llm": "language", "clip": "clip", "vae": "vae", "sd": "diffusion", "judge": "scene_classifier"}
    for PART in FOLDERS:

        rule:
            name:
                f"train_foundation_{PART}"
            input:
                parts=[FOLDERS["vae"]] if PART == "sd" else [],
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
                    getattr(EXPERIMENT.foundations, PART),
                ),
            shell:
                "{params.launch} --job {log:q} train-foundation --part {params.part} --config {params.experiment:q}"
                " {params.parts:q} --out {output.folder:q} > {log:q} 2>&1"
