# Tables and figures of the experiment of --configfile; running another experiment replaces them.
# The target that everybody asks for is `results/tables`, so the figures are an input of it and are made as well, and the
# summary for DVC is made with it.


rule tables:
    input:
        metrics=METRICS,
        submissions=SUBMISSIONS,
        human=JUDGED,
        item_scores=ITEMS,
        paper=[*sorted(map(str, Path("paper").glob("*.csv"))), "paper/tables.yaml", "paper/claims.yaml"],
        figures=FIGURES,
        checkpoints=[FIRST.checkpoint(stage) for stage in TRAINED],
    output:
        summary=directory(SUMMARY),
        tables=report(
            directory(TABLES),
            patterns=["{name}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{name}"},
        ),
    log:
        f"logs/{NAME}/tables.log",
    resources:
        **CPU_JOB,
    params:
        experiment=lambda wildcards: NAME,  # a function, or snakemake --lint takes the name `paper` for a folder's
        paper=lambda wildcards, input: Path(input.paper[0]).parent,
        item_folders=lambda wildcards: [f"results/items/{run}" for run in RUNS],
        losses=losses,
        code=code_digest("dreamllm.results.tables"),
    shell:
        "python -m dreamllm --job {log:q} tables --metrics {input.metrics:q} {input.human:q} --items {params.item_folders:q}"
        " --paper {params.paper:q} --losses {params.losses:q} --summary {output.summary:q} --out {output.tables:q}"
        " > {log:q} 2>&1"


rule figures:
    input:
        checkpoints=[FIRST.checkpoint(stage) for stage in TRAINED],
        drawings=[predictions(*one, FIRST.run) for one in EVALUATED if one[1] == "draw"],
        stories=[predictions(*one, FIRST.run) for one in EVALUATED if one[1] == "stories"][-1:],
        answers=[predictions(*one, FIRST.run) for one in EVALUATED if one[1] == "vqa"],
        in_context=[predictions(*one, FIRST.run) for one in EVALUATED if one[1] == "in_context"],
        attention=[predictions(*one, FIRST.run) for one in EVALUATED if one[1] == "attention"][-1:],
        benchmarks=WORLD["benchmarks"],
    output:
        figures=report(
            directory(FIGURES),
            patterns=["{name}.png"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        f"logs/{NAME}/figures.log",
    resources:
        **CPU_JOB,
    params:
        experiment=NAME,
        trained=[e.model for e in EXPERIMENT.evaluations if learnt_in_context(*(e.stages or [e.model]))],
        losses=losses,
        code=code_digest("dreamllm.results.figures"),
    shell:
        "python -m dreamllm --job {log:q} figures --losses {params.losses:q} --drawings {input.drawings:q}"
        " --stories {input.stories:q} --answers {input.answers:q} --in-context {input.in_context:q}"
        " --trained {params.trained:q} --attention {input.attention:q} --benchmarks {input.benchmarks:q}"
        " --out {output.figures:q} > {log:q} 2>&1"
