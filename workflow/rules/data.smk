# The emoji world: training shards and benchmarks, generated from a seed.


rule make_world:
    output:
        train=directory(WORLD["train"]),
        benchmarks=directory(WORLD["benchmarks"]),
    log:
        f"logs/{NAME}/make_world.log",
    resources:
        **CPU_JOB,
    params:
        experiment=configfile,
        out=subpath(output.train, parent=True),
        code=code_digest("dreamllm.emoji.world"),
        config=digest(EXPERIMENT.world),
    shell:
        "python -m dreamllm --job {log:q} make-world --config {params.experiment:q} --out {params.out:q} > {log:q} 2>&1"
