"""Time interleaved generation of stories together, as one batch, against one by one.

    python benchmarks/stories.py --stories 16 --repeats 3

Continues the first stories of the split dev greedily in fp32 and prints seconds, and how many stories have the same
texts both ways: those of the default run's model after `make tables`, or of another by the flags of `dreamllm draw`. On
a CPU: CPU time of one thread, the median over the repeats; on a GPU: wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dreamllm.data.document import Text
from dreamllm.evaluate import model_options, prompts
from dreamllm.evaluate.tasks import stories
from dreamllm.model import precision
from dreamllm.model.generate import Continuation, TextSampling, interleave
from dreamllm.model.sampling import PictureSampling


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a run: of CPU time, or on a GPU of wall time until it has finished."""
    if device.type != "cuda":
        begin = time.process_time()
        run()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def texts(continuations: list[Continuation]) -> list[list[str]]:
    """The parts of each continuation, an image as "<image>", and why it stopped."""
    return [
        [part.text if isinstance(part, Text) else "<image>" for part in one.parts] + [one.stopped]
        for one in continuations
    ]


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_options.add_model(parser)
    parser.add_argument("--benchmarks", type=Path, default=Path("data/emoji/benchmarks"), help="has stories_dev.jsonl")
    parser.add_argument("--stories", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of diffusion, per image")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--max-pictures", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = model_options.load(arguments)
    precision.for_inference(model, model.device, torch.float32)
    items = stories.read(arguments.benchmarks, "dev")[0][: arguments.stories]
    documents = [prompts.plain_text(item.id, item.opening) for item in items]
    writing = TextSampling(max_new_tokens=arguments.max_new_tokens, max_pictures=arguments.max_pictures)
    drawing = PictureSampling(steps=arguments.steps, guidance=2.0)

    made: dict[str, list[Continuation]] = {}

    def together() -> None:
        made["together"] = interleave(model, processor, documents, range(len(documents)), writing, drawing)

    def one_by_one() -> None:
        made["one by one"] = [
            interleave(model, processor, [document], [seed], writing, drawing)[0]
            for seed, document in enumerate(documents)
        ]

    times: dict[str, list[float]] = {"one by one": [], "together": []}
    for _ in range(arguments.repeats):
        for name, run in (("together", together), ("one by one", one_by_one)):
            times[name].append(seconds(run, model.device))
    alone, batch = (statistics.median(times[name]) for name in ("one by one", "together"))
    same = sum(a == b for a, b in zip(texts(made["one by one"]), texts(made["together"]), strict=True))
    written = texts(made["together"])
    images = sum(part == "<image>" for one in written for part in one)
    words = sum(len(part.split()) for one in written for part in one[:-1] if part != "<image>")
    print(
        f"{len(documents)} stories on {model.device}, {images} images of {arguments.steps} steps, {words} words, fp32"
    )
    print(f"one by one {alone:.2f} s, together {batch:.2f} s: {alone / batch:.1f} times faster; same texts: {same}")
    if same < len(documents):
        sys.exit(f"{len(documents) - same} stories have other texts together than alone")


if __name__ == "__main__":
    main()
