"""`snakemake --logger dreamllm`: one live view of a run instead of Snakemake's messages (`dreamllm.live_view`).

Snakemake finds logger plugins by the names of packages, and imports this one at every start.
"""

from __future__ import annotations

import sys
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase


class LogHandler(LogHandlerBase):
    """Passes Snakemake's log records to the live view. The complete log is in .snakemake/log, as without it."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Make the view; a dry run has none."""
        from dreamllm.live_view import LiveView, Run
        from dreamllm.timings import RECORDED, read_recorded

        self.view = None if self.common_settings.dryrun else LiveView(Run(read_recorded(RECORDED)))

    def emit(self, record: LogRecord) -> None:
        """Show what a record changes; a dry run prints it as Snakemake does."""
        try:
            if self.view:
                self.view.handle(record, self.format)
            else:
                print(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """End the view with what was done."""
        if self.view:
            self.view.close()
        super().close()


def missing_configfile(command: list[str]) -> str | None:
    """The message for a file of --configfile that does not exist; None where there is none.

    Snakemake opens these files before it reads a Snakefile or starts a logger, and answers with a traceback.
    """
    values = [word.partition("=")[2] for word in command if word.startswith(("--configfile=", "--configfiles="))]
    for value in values:
        if not Path(value).exists():
            there = ", ".join(map(str, sorted(Path(value).parent.glob("*.yaml")))) or "none"
            return f"snakemake: --configfile={value}: no such file; configurations there: {there}"
    return None


if Path(sys.argv[0]).name == "snakemake" and (message := missing_configfile(sys.argv[1:])):
    sys.exit(message)
