# The workflow is workflow/Snakefile, where the workflow catalog of Snakemake looks for it. Called here, it is the same.
include: "workflow/Snakefile"
