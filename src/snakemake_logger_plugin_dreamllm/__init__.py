"""`snakemake --logger dreamllm`: one live view of a run instead of Snakemake's messages (`dreamllm.live_view`).

Snakemake finds logger plugins by the names of packages, and imports this one at every start.
"""

from __future__ import annotations

import sys
from itertools import takewhile
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


def wrong_configfile(command: list[str]) -> str | None:
    """The message for a value of --configfile that is no file; None where all are files.

    Snakemake opens these files before it reads a Snakefile or starts a logger, and answers with a traceback.
    """
    for number, word in enumerate(command):
        flag, equals, value = word.partition("=")
        if flag not in ("--configfile", "--configfiles"):
            continue
        given = [value] if equals else takewhile(lambda one: not one.startswith("-"), command[number + 1 :])
        if wrong := next((one for one in given if not Path(one).exists() or Path(one).is_dir()), None):
            hint = "" if equals else f"; before a target write {flag}=FILE, with the equals sign"
            there = ", ".join(map(str, sorted(Path("config").glob("*.yaml")))) or "none in config/"
            return f"snakemake: {flag}: {wrong}: no such file{hint}; configurations: {there}"
    return None


if Path(sys.argv[0]).name == "snakemake" and (message := wrong_configfile(sys.argv[1:])):
    sys.exit(message)
