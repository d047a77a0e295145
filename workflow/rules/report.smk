# The report of a run and its RO-Crate (docs/report.md). Neither is an output of dvc.yaml: they hold times and memory,
# which differ from run to run, and otherwise repeat what DVC records.
from dreamllm.digests import sha256_of_file


rule site:
    input:
        metrics=METRICS,
        human=JUDGED,
        item_scores=ITEMS,
        checkpoints=[FIRST.checkpoint(stage) for stage in TRAINED],
        predictions=[predictions(*one, FIRST.run) for one in EVALUATED],
        benchmarks=WORLD["benchmarks"],
        tables=TABLES,
        figures=FIGURES,
        paper=[*sorted(map(str, Path("paper").glob("*.csv"))), "paper/tables.yaml", "paper/claims.yaml"],
    output:
        report=directory(REPORT),
    log:
        f"logs/{NAME}/site.log",
    resources:
        **CPU_JOB,
    params:
        experiment=configfile,
        paper=lambda wildcards, input: Path(input.paper[0]).parent,
        item_folders=lambda wildcards: [f"results/items/{run}" for run in RUNS],
        code=code_digest("dreamllm.repro.report.site"),
        templates=[sha256_of_file(path) for path in sorted(Path("src/dreamllm/repro/report/templates").iterdir())],
    shell:
        "python -m dreamllm --job {log:q} site --config {params.experiment:q} --metrics {input.metrics:q} {input.human:q}"
        " --items {params.item_folders:q} --paper {params.paper:q} --out {output.report:q} > {log:q} 2>&1"


rule crate:
    input:
        tables=TABLES,
        figures=FIGURES,
        report=REPORT,
    output:
        crate=CRATE,
        manifest=CODECHECK,
    log:
        f"logs/{NAME}/crate.log",
    resources:
        **CPU_JOB,
    params:
        experiment=configfile,
        code=code_digest("dreamllm.repro.report.crate"),
    shell:
        "python -m dreamllm --job {log:q} crate --config {params.experiment:q} > {log:q} 2>&1"
