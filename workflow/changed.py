"""Print a line about results that were edited after Snakemake made them. Usage: the last line of `make tables`.

Snakemake takes an edited result for up to date, or makes again only what depends on it; see docs/workflow.md.
"""

from __future__ import annotations

from dreamllm.snakemake_records import changed_by_hand

if found := changed_by_hand():
    path, how = next(iter(found.items()))
    number = len(found) - 1
    more = f", and {number} more" if number else ""
    print(
        f"Changed by hand after it was made: {path} ({how}){more}. Snakemake does not make it again by itself: "
        "delete it and run this again. `make audit` lists all."
    )
