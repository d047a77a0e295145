"""The command line: `dreamllm VERB ...`, or `python -m dreamllm VERB ...`.

Each verb lives in a module with `add_arguments(parser)` and `main(arguments)`, which is imported only when it is
called: `dreamllm --help` loads nothing heavy.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import locale
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import TracebackType

import dreamllm
from dreamllm.atomic import DISK_ERRORS
from dreamllm.masking import mask
from dreamllm.timings import measured

VERBS = {  # verb: (module, what it does)
    "plan": ("dreamllm.repro.plan.report", "print what an experiment costs, before anything is spent"),
    "make-world": ("dreamllm.emoji.world", "write the emoji world: training shards and benchmark files"),
    "fetch-source": ("dreamllm.sources.fetch", "fetch a public data set: whole, checked, going on after a cut"),
    "list-urls": ("dreamllm.sources.urls", "list the addresses of a data set's pictures for img2dataset"),
    "build-shards": ("dreamllm.sources.build", "turn a fetched data set into document shards"),
    "list-shards": ("dreamllm.sources.list_shards", "list shards for training that reads them over the network"),
    "write-instructions": ("dreamllm.sources.instruct", "write the instruction sets that were never released"),
    "place-benchmark": ("dreamllm.evaluate.placing", "put a fetched evaluation set where its reader looks for it"),
    "fetch-foundations": ("dreamllm.emoji.foundations.fetch", "fetch the foundation models by digest"),
    "train-foundation": ("dreamllm.emoji.foundations.run", "train one foundation model from nothing"),
    "measure-foundations": (
        "dreamllm.emoji.foundations.figures",
        "measure the foundation models against their gates",
    ),
    "train": ("dreamllm.verbs.train", "train one stage of DreamLLM"),
    "finetune-sd": ("dreamllm.train.finetune_sd", "fine-tune Stable Diffusion, a baseline, on the same pairs"),
    "predict": ("dreamllm.evaluate.predict", "write a model's raw answers to a benchmark"),
    "score": ("dreamllm.evaluate.score", "turn raw answers into metrics"),
    "features": (
        "dreamllm.evaluate.features",
        "look at pictures once, and store what FID and CLIP score need",
    ),
    "score-pictures": ("dreamllm.evaluate.score_pictures", "FID and CLIP score of several pictures per prompt"),
    "submission": ("dreamllm.evaluate.submission", "write the file that an evaluation server takes"),
    "tables": ("dreamllm.results.tables", "turn metrics into tables beside the paper's, and judge its claims"),
    "audit": ("dreamllm.repro.audit.run", "check what can be trusted: every number against what it was made from"),
    "compare": ("dreamllm.repro.audit.compare", "say of each number of two result folders how well it was reproduced"),
    "figures": ("dreamllm.verbs.figures", "draw the paper's figures from stored predictions"),
    "site": ("dreamllm.verbs.site", "write the report of a run: a static site, REPORT.md, model and data cards"),
    "crate": ("dreamllm.verbs.crate", "write what a run was made from as RO-Crate, and the CODECHECK manifest"),
    "human-page": (
        "dreamllm.evaluate.human.rating_form",
        "build a page on which people judge model and real documents, unmarked",
    ),
    "human-score": ("dreamllm.evaluate.human.score", "turn people's judgements into metrics"),
    "draw": ("dreamllm.verbs.draw", "generate exactly one image for each prompt"),
    "ask": ("dreamllm.verbs.ask", "answer questions about images"),
    "chat": ("dreamllm.verbs.chat", "talk to the model at the terminal, with images in both directions"),
    "demo": ("dreamllm.verbs.demo", "the same in the browser: a page to draw, chat and tell stories with a model"),
    "generate": ("dreamllm.evaluate.demo_page", "continue a prompt with text and pictures, as a small HTML page"),
    "export": ("dreamllm.verbs.export", "write a trained model as one Hugging Face folder"),
    "fetch-released": ("dreamllm.sources.released", "download what the authors released, at a pinned revision"),
    "import-official": ("dreamllm.verbs.import_official", "read a checkpoint that the authors released"),
    "export-official": ("dreamllm.verbs.export_official", "write a trained model as their code reads it"),
}


PLACE = (*DISK_ERRORS, errno.EACCES, errno.EPERM)  # what a disk or its owner refuses

NAMED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""Of a path that was given: not there, of another kind, there already, too long, a link to itself."""


MADE_BY_MAKE = ("data/foundations", "results/checkpoints/embedded")
"""Defaults of flags that a fresh checkout does not have."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb. Exits with one line where the user's input is wrong, or the disk is full or closed; silently where
    the reader of its output is gone (`dreamllm plan ... | head`), with the status of a program that SIGPIPE ended."""
    if argv is None:
        _use_utf8()
    try:
        _run(argv)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # of another pipe or connection
        sys.exit(128 + signal.SIGPIPE)
    finally:
        _reader_is_gone()  # or Python itself would tell of it at the end


def _run(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="dreamllm",
        description="DreamLLM, a language model that reads and generates images, as a reproducible experiment.",
        epilog="verbs:\n" + "\n".join(f"  {verb:<19} {does}" for verb, (_, does) in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=dreamllm.__version__)
    parser.add_argument("--job", type=Path, metavar="LOG", help="of Snakemake's jobs, logs/RUN/JOB.log: see timings.py")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of those below; VERB --help tells its flags")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the verb's own flags")
    chosen = parser.parse_args(argv)
    sys.excepthook = _show_error

    module = import_module(VERBS[chosen.verb][0])
    verb_parser = argparse.ArgumentParser(
        prog=f"dreamllm {chosen.verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(verb_parser)
    try:
        with measured(chosen.job) if chosen.job else nullcontext():
            module.main(verb_parser.parse_args(chosen.arguments))
    except ValueError as error:
        if not type(error).__module__.startswith("dreamllm."):
            raise  # only our own ...Problem classes are messages to the user; anything else is a bug
        sys.exit(mask(f"dreamllm {chosen.verb}: {error}") + _first_step(str(error)))
    except OSError as error:
        if error.errno in NAMED or (isinstance(error, FileNotFoundError) and error.errno is None):
            what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
            sys.exit(mask(f"dreamllm {chosen.verb}: {what}") + _first_step(what))
        if error.errno not in PLACE:
            raise
        sys.exit(
            mask(f"dreamllm {chosen.verb}: cannot write or read: {error}.")
            + " What was finished before is whole, nothing stands half-written under its final name; make room or give "
            "access, and run the same command again"
        )


def _first_step(message: str) -> str:
    """The end of a message about files that a fresh checkout does not have: how to make them."""
    missing = [path for path in MADE_BY_MAKE if path in message and not Path(path).exists()]
    return "; run `make tables` first: it fetches the foundation models and trains on them" if missing else ""


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more. If so, what is left to write there is dropped."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
    poll = select.poll()
    poll.register(number, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


def _use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode, where the locale has another encoding.

    Texts, names of files and output of programs are UTF-8 here; an ASCII locale could not even print an arrow. Where
    PYTHONIOENCODING asks for less, signs that it lacks are printed as escapes.
    """
    is_utf8 = codecs.lookup(locale.getencoding()).name == "utf-8"
    if not is_utf8 and not sys.flags.utf8_mode and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback, with secrets masked: messages of libraries hold addresses and headers."""
    sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))


if __name__ == "__main__":
    main()
