# The workflow is workflow/Snakefile, where the workflow catalog of Snakemake looks for it. Called here, it is the same.
include: "workflow/Snakefile"


# Snakemake forgets the default target of a file that is included.
rule tables_and_figures:
    default_target: True
    input:
        rules.all.input,
