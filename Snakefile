# DreamLLM as a runnable experiment.
#
#   snakemake --cores all results/tables                                    config/embedded.yaml, on a laptop
#   snakemake --cores all --configfile=config/mine.yaml results/tables      another experiment instead
#   snakemake --cores all --dry-run                                         what would run, and why
#
# Rules are in workflow/rules, paths and digests in common.smk and measure.smk there. docs/workflow.md explains the house.
from snakemake.utils import min_version

from dreamllm.snakemake_records import refusal_under_dvc, sweep

min_version("9.27")

# DVC takes what a stage leaves for its result, so a stage does not begin on files of which nobody knows how they came.
if workflow.is_main_process and (reason := refusal_under_dvc("dvc.yaml")):
    raise WorkflowError(reason)


onstart:
    sweep("results")  # unfinished files of jobs that were killed; this run holds the lock


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/documents.smk"
include: "workflow/rules/foundations.smk"
include: "workflow/rules/released.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/pictures.smk"
include: "workflow/rules/human.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "results/tables",
        "results/figures",


# Names for groups of results; each is also a stage of dvc.yaml.


rule foundations:
    input:
        FOUNDATIONS.values(),


rule data:
    input:
        WORLD.values(),


rule checkpoints:
    input:
        of_all_runs([checkpoint(stage) for stage in TRAINED]),


rule report:
    input:
        "results/report",
        "ro-crate-metadata.json",
        "codecheck.yml",


rule evaluate:
    input:
        METRICS,
        SUBMISSIONS,
        ITEMS,
