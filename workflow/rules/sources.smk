# Public data sets: their files, lists of picture addresses, and the pictures themselves.


rule fetch_source:
    output:
        raw=directory(PATHS.raw("{source}")),
    log:
        f"logs/{NAME}/fetch_{{source}}.log",
    wildcard_constraints:
        source="|".join(DOWNLOADED),
    resources:
        **CPU_JOB,
    params:
        manifest=manifest.MANIFEST,
        files=lambda wildcards: digest(*PUBLIC[wildcards.source].files),
    shell:
        "python -m dreamllm --job {log:q} fetch-source --source {wildcards.source} --manifest {params.manifest:q}"
        " --out {output.raw:q} > {log:q} 2>&1"


# The configuration chooses the folder of each data set, so these and the rules of documents.smk are one rule per data
# set instead of one with a wildcard.
for SET in [name for name in BUILT if PUBLIC[name].holds_addresses]:

    rule:
        name:
            f"list_urls_{SET}"
        input:
            raw=PATHS.raw(SET),
        output:
            urls=directory(PATHS.source(SET, "urls")),
        log:
            f"logs/{NAME}/list_urls_{SET}.log",
        resources:
            **CPU_JOB,
        params:
            source=SET,
            experiment=configfile,
            manifest=manifest.MANIFEST,
            code=code_digest("dreamllm.sources.urls", f"dreamllm.sources.readers.{PUBLIC[SET].format}"),
            config=digest(
                use(SET).candidates,
                use(SET).min_similarity,
                use(SET).private_hosts,
                PUBLIC[SET].format,
                PUBLIC[SET].columns,
            ),
        shell:
            "python -m dreamllm --job {log:q} list-urls --source {params.source} --manifest {params.manifest:q}"
            " --config {params.experiment:q} --raw {input.raw:q} --out {output.urls:q} > {log:q} 2>&1"

    # img2dataset resumes from the shards that it finds, so it works in another folder and renames that at the end.
    rule:
        name:
            f"fetch_pictures_{SET}"
        input:
            urls=PATHS.source(SET, "urls"),
        output:
            pictures=directory(PATHS.source(SET, "pictures")),
        log:
            f"logs/{NAME}/fetch_pictures_{SET}.log",
        threads: MACHINE.threads
        resources:
            **CPU_JOB,
        params:
            partial=PATHS.source(SET, f"fetching-{of_pictures(SET)}"),
            captions=["--caption_col", "caption"] if PUBLIC[SET].has_captions else [],
            distributor=distributor,
        shell:
            "python -m dreamllm.timings {log:q} sh workflow/fetch_pictures.sh {input.urls:q}/urls.jsonl.gz"
            " {params.partial:q} {output.pictures:q} --processes_count {threads} --distributor {params.distributor}"
            " {params.captions:q} > {log:q} 2>&1"
