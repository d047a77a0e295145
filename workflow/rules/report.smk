# What a run is shown and handed on as (docs/report.md). No part of results/tables, and no stage of dvc.yaml: it holds times
# and memory, which differ from run to run, and says nothing that is not in what DVC records.
from dreamllm.digests import sha256_of_file

STORIES = [predictions(model, benchmark, FIRST) for model, benchmark in EVALUATED if benchmark == "stories"]
DRAWINGS = [predictions(model, benchmark, FIRST) for model, benchmark in EVALUATED if benchmark == "draw"]


rule site:
    input:
        metrics=METRICS,
        human=JUDGED,
        item_scores=ITEMS,
        checkpoints=[checkpoint(stage, FIRST) for stage in TRAINED],
        drawings=DRAWINGS,
        stories=STORIES,
        benchmarks=WORLD["benchmarks"],
        tables="results/tables",
        figures="results/figures",
        paper=[*sorted(map(str, Path("paper").glob("*.csv"))), "paper/tables.yaml", "paper/claims.yaml"],
    output:
        report=directory("results/report"),
    log:
        f"logs/{NAME}/site.log",
    benchmark:
        f"benchmarks/{NAME}/site.tsv"
    resources:
        **CPU_JOB,
    params:
        experiment=configfile,
        paper=lambda wildcards, input: Path(input.paper[0]).parent,
        item_folders=lambda wildcards: [f"results/items/{run}" for run in RUNS],
        code=code_digest("dreamllm.repro.report.site"),
        templates=[sha256_of_file(path) for path in sorted(Path("src/dreamllm/repro/report/templates").iterdir())],
    shell:
        "python -m dreamllm site --config {params.experiment:q} --metrics {input.metrics:q} {input.human:q}"
        " --items {params.item_folders:q} --paper {params.paper:q} --out {output.report:q} > {log:q} 2>&1"


rule crate:
    input:
        tables="results/tables",
        figures="results/figures",
        report="results/report",
    output:
        crate="ro-crate-metadata.json",
        manifest="codecheck.yml",
    log:
        f"logs/{NAME}/crate.log",
    benchmark:
        f"benchmarks/{NAME}/crate.tsv"
    resources:
        **CPU_JOB,
    params:
        experiment=configfile,
        code=code_digest("dreamllm.repro.report.crate"),
    shell:
        "python -m dreamllm crate --config {params.experiment:q} > {log:q} 2>&1"
