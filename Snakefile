# DreamLLM as a reproducible experiment.
#
#   snakemake --cores all results/tables                                    config/embedded.yaml, on a laptop
#   snakemake --cores all --configfile=config/mine.yaml results/tables      another experiment instead
#   snakemake --cores all --dry-run                                         what would run, and why
#
# Rules: workflow/rules. Paths of all files: src/dreamllm/paths.py. Explanations: docs/workflow.md.
from snakemake.utils import min_version

from dreamllm import job_server
from dreamllm.snakemake_records import record_digests, refusal_under_dvc, sweep

min_version("9.27")

# DVC records whatever a stage leaves in its folders as its result, so no stage may start on files of unknown origin.
if workflow.is_main_process and (reason := refusal_under_dvc("dvc.yaml")):
    raise WorkflowError(reason)


onstart:
    sweep("results")  # remove unfinished files of killed jobs; other experiments may be running beside this one
    if workflow.is_main_process and workflow.local_exec and MACHINE.gpus == 0 and MACHINE.threads == 1:
        job_server.start(**JOB_VARIABLES, **job_server.ONE_THREAD)  # all jobs share its imports of torch


# The audit compares what is there with these digests, to find what was edited after it was made.
onsuccess:
    record_digests(touched=workflow.touch)


onerror:
    record_digests(touched=workflow.touch)


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
        TABLES,
        FIGURES,


# Names for groups of results; dvc.yaml uses some of them as targets.


rule foundations:
    input:
        FOUNDATIONS.values(),


rule data:
    input:
        WORLD.values(),


rule checkpoints:
    input:
        of_all_runs([PATHS.checkpoint(stage) for stage in TRAINED]),


rule report:
    input:
        REPORT,
        CRATE,
        CODECHECK,


rule evaluate:
    input:
        METRICS,
        SUBMISSIONS,
        ITEMS,
