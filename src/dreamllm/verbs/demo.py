"""Use a model in the browser: `dreamllm demo`, then open http://127.0.0.1:7860.

The page draws images with seeds and guidance, talks with images in both directions, continues stories, and shows what
the UNet attends to in the dream queries. It needs `pip install dreamllm[demo]`. Nothing on it is loaded from elsewhere,
and nothing is sent elsewhere.
"""

from __future__ import annotations

import argparse
import socket
from importlib.util import find_spec

from dreamllm.evaluate import model_options


class DemoProblem(ValueError):
    """The page cannot be served: says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm demo`."""
    model_options.add_model(parser)
    host = "address to listen at (%(default)s: this machine only; 0.0.0.0: all who reach it, without a password)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=int, default=7860, help="%(default)s")


def main(arguments: argparse.Namespace) -> None:
    """Load the model and serve the page until Ctrl+C."""
    if find_spec("nicegui") is None:
        raise DemoProblem("NiceGUI, which serves the page, is not installed: pip install dreamllm[demo]")
    check_address(arguments.host, arguments.port)
    model, processor = model_options.load(arguments)

    from dreamllm.demo import actions, page
    from dreamllm.model.pipeline import DreamLLMPipeline

    examples = actions.emoji_examples() if model_options.knows_emoji_world(arguments) else actions.Examples()
    demo = page.Demo(DreamLLMPipeline.from_model(model, processor), model_options.name(arguments), examples)
    print(f"http://{arguments.host}:{arguments.port} shows the model {demo.name}; Ctrl+C ends", flush=True)
    page.serve(demo, arguments.host, arguments.port)


def check_address(host: str, port: int) -> None:
    """Raises DemoProblem for an address at which nothing can listen."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise DemoProblem(f"cannot listen at {host}:{port} ({error}); choose another --port or --host") from None
