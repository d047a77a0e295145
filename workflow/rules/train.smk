# DreamLLM's training stages, and the fine-tuned Stable Diffusion of Table 2. A killed training continues from its last
# save in scratch/, which neither Snakemake nor DVC tracks.
#
# Each stage is a rule of its own and not a wildcard of one: dvc.yaml limits every DVC stage to its rules by
# --allowed-rules. With one rule, a missing checkpoint of another stage would be trained without DVC's knowledge.

for STAGE in EXPERIMENT.stages:

    rule:
        name:
            f"train_{STAGE}"
        input:
            shards=shard_folders(STAGE),
            llm=FOUNDATIONS["llm"],
            clip=FOUNDATIONS["clip"],
            sd=FOUNDATIONS["sd"],
            others=other_foundations(STAGE),
            init=[PATHS.checkpoint(stage) for stage in EXPERIMENT.lineage(*EXPERIMENT.stages[STAGE].init)],
        output:
            checkpoint=directory(PATHS.checkpoint(STAGE)),
        log:
            f"logs/{{run}}/train_{STAGE}.log",
        priority: len(EXPERIMENT.stages) - list(EXPERIMENT.stages).index(STAGE)  # as in the file: longest chain first
        threads: MACHINE.threads
        resources:
            **TRAINING_JOB,
        params:
            launch=launch,
            experiment=configfile,
            seed=seed_flag,
            stage=STAGE,
            foundations=subpath(input.llm, parent=True),
            init=lambda wildcards, input: ["--init", *input.init] if input.init else [],
            work=f"scratch/{{run}}/{STAGE}",
            code=code_digest("dreamllm.train.trainer"),
            config=stage_settings(STAGE),
        shell:
            "{params.launch} --job {log:q} train --stage {params.stage} --config {params.experiment:q} {params.seed}"
            " --foundations {params.foundations:q} --data {input.shards:q} {params.init:q}"
            " --out {output.checkpoint:q} --work {params.work:q} > {log:q} 2>&1"


if EXPERIMENT.sd_finetuned:

    rule train_sd_finetuned:
        input:
            shards=shard_folders("sd_finetuned"),
            sd=FOUNDATIONS["sd"],
        output:
            checkpoint=directory(PATHS.checkpoint("sd_finetuned")),
        log:
            "logs/{run}/train_sd_finetuned.log",
        threads: MACHINE.threads
        resources:
            **GPU_JOB,
        params:
            launch=launch_one,
            experiment=configfile,
            seed=seed_flag,
            foundations=subpath(input.sd, parent=True),
            code=code_digest("dreamllm.train.finetune_sd"),
            config=lambda wildcards: digest(RUNS[wildcards.run].seed, EXPERIMENT.precision, EXPERIMENT.sd_finetuned),
        shell:
            "{params.launch} --job {log:q} finetune-sd --config {params.experiment:q} {params.seed}"
            " --foundations {params.foundations:q} --data {input.shards:q} --out {output.checkpoint:q} > {log:q} 2>&1"
