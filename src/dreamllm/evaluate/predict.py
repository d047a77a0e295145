"""A model's raw answers to a benchmark: `dreamllm predict`. Nothing is judged here (`score.py`).

Any model made of stage checkpoints writes, draws and tells stories; `sd` and `sd_finetuned`, Stable Diffusion with its
own text encoder, draw (`predict_pictures.py`); `llm`, the language model that DreamLLM starts from, takes the
language-only questions. Public sets are named in the experiment's `benchmarks`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamllm.config.base import near
from dreamllm.config.benchmarks import WORLD_TASKS, BenchmarkUse
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.data.layout import TEMPLATES, Vocabulary, lay_out_prompt
from dreamllm.digests import content_files, digest, sha256_of_file
from dreamllm.evaluate import answer, attention, benchmarks, drawing, harness, predict_pictures, prompts
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.predictions import write, write_tensors
from dreamllm.provenance import machine, versions

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor

PICTURES = ("draw", "narratives", "illustrations", "in_context", "latency")  # by `predict_pictures.py`
Records = list[dict[str, Any]]
Images = dict[str, Image.Image]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm predict`."""
    parser.add_argument("--config", required=True, type=Path, help="experiment whose `evaluation` section is used")
    parser.add_argument("--seed", type=int, help="that of the run, where the experiment has several (its `seeds`)")
    parser.add_argument("--model", required=True, help="name of the model; llm, sd and sd_finetuned are foundations")
    parser.add_argument("--benchmark", required=True, help="one of the emoji world, or of the section `benchmarks`")
    parser.add_argument("--split", required=True, choices=["dev", "test"])
    parser.add_argument("--foundations", required=True, type=Path, help="folder with llm/, clip/ and sd/")
    parser.add_argument("--checkpoints", nargs="*", default=[], type=Path, help="stage checkpoints, in loading order")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--shots", type=Path, help="folder of the benchmark files that worked examples are from")
    parser.add_argument("--sample", type=int, default=0, help="which of several pictures per prompt, from 0 on")
    parser.add_argument("--work", type=Path, help="folder from which a run of pictures that was killed goes on")
    parser.add_argument(
        "--out", required=True, type=Path, help=".jsonl; pictures and stories .tar; attention .safetensors"
    )


def main(args: argparse.Namespace) -> None:
    """Run one model on one benchmark and write its prediction file.

    Raises BenchmarkProblem for a model that cannot take the benchmark, and for a broken benchmark.
    """
    experiment = load(args.config, args.seed)
    try:
        use = experiment.benchmark(args.benchmark)
    except KeyError:
        hint = near(args.benchmark, [*WORLD_TASKS, *experiment.benchmarks])
        raise ConfigProblem(f"{args.config}: no benchmark {args.benchmark!r}{hint}") from None
    own = {"llm": ("harness", "language"), "sd": PICTURES, "sd_finetuned": PICTURES}.get(args.model)
    if own and use.task not in own:
        what = f"takes the task {' and '.join(map(repr, own))} only"
        raise BenchmarkProblem(args.config, f"model {args.model}", what)
    if (args.model in ("llm", "sd")) == bool(args.checkpoints):
        problem = "is a foundation, without any" if args.checkpoints else "needs the"
        raise BenchmarkProblem(args.config, f"model {args.model}", f"{problem} --checkpoints it is made of")
    settings = experiment.evaluation
    own_limits = {"latency": settings.latency.pictures, "attention": settings.attention.prompts}
    limit = own_limits.get(use.task, settings.limit)
    items = [] if use.task == "harness" else benchmarks.load(use.task, args.benchmarks, args.split, limit)
    images: Images | None = None
    about: dict[str, Any] = {}
    header = {
        "model": args.model,
        "benchmark": args.benchmark,
        "task": use.task,
        "split": args.split,
        "limit": limit,
        "protocol": protocol(args, settings) | _of_its_own(use),
    }
    if use.task in PICTURES:
        predict_pictures.predict(args, experiment, use.task, items, header)
        return
    if use.task == "attention":
        attend(args, items, settings, header)
        return
    if use.task == "harness":
        records, about = by_harness(args, use, settings, experiment.model.template)
    elif args.model == "llm":
        records = choose(*language_model(args.foundations / "llm", experiment.model.template), items, settings)
    else:
        records, images = run(args, use, items, settings)
        about = {"shots": use.shots} if use.shots else {}
    write(args.out, header | about, records, images)


def run(
    args: argparse.Namespace, use: BenchmarkUse, items: Sequence[Any], settings: EvaluationSettings
) -> tuple[Records, Images | None]:
    """Predictions of a DreamLLM made of checkpoints."""
    from dreamllm.model import precision
    from dreamllm.train.checkpoint import load_model

    model, processor = load_model(args.foundations, args.checkpoints)
    precision.for_inference(model, _device())
    if use.task == "language":
        return choose(model.language_model, processor.vocabulary, processor.context, items, settings), None
    if use.task == "stories":
        return tell(model, processor, items, settings)
    shown = benchmarks.pictures(args.benchmarks, args.split)
    if use.shots:
        folder = args.shots or args.benchmarks
        split = args.split if args.shots else {"test": "dev", "dev": "test"}[args.split]
        clip = args.foundations / "clip"
        return answer.answer_with_examples(model, processor, use, items, shown, settings, folder, split, clip), None
    return answer.answer(model, processor, use, items, shown, settings), None


def attend(
    args: argparse.Namespace, items: Sequence[Any], settings: EvaluationSettings, header: dict[str, Any]
) -> None:
    """Write where the UNet of a DreamLLM attends to its queries while it draws."""
    from dreamllm.model import precision
    from dreamllm.train.checkpoint import load_model

    model, processor = load_model(args.foundations, args.checkpoints)
    precision.for_inference(model, _device())
    header["protocol"]["layers"] = list(attention.cross_attention(model.unet))
    wanted = drawing.plan(items, settings.seed, 0)
    tensors = attention.measure(model, processor, wanted, settings.drawing)
    records = [_record(one.item.id, one.prompt, one.seed) for one in wanted]
    write_tensors(args.out, header, records, tensors)


def by_harness(
    args: argparse.Namespace, use: BenchmarkUse, settings: EvaluationSettings, template: str
) -> tuple[Records, dict[str, Any]]:
    """Records of lm-evaluation-harness for the language model alone, or for that inside of a DreamLLM."""
    if args.model == "llm":
        from transformers import AutoTokenizer

        model, _, context = language_model(args.foundations / "llm", template)
        tokenizer = AutoTokenizer.from_pretrained(args.foundations / "llm")
    else:
        from dreamllm.model import precision
        from dreamllm.train.checkpoint import load_model

        whole, processor = load_model(args.foundations, args.checkpoints)
        precision.for_inference(whole, _device())
        model = whole.language_model
        tokenizer, context = processor.tokenizer, processor.context
    records, about = harness.evaluate(model, tokenizer, context, use, args.benchmarks, settings)
    digests = {str(file.relative_to(args.benchmarks)): sha256_of_file(file) for file in content_files(args.benchmarks)}
    return records, about | {"data": digests}


def tell(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    items: Sequence[benchmarks.StoryItem],
    settings: EvaluationSettings,
) -> tuple[Records, Images]:
    """Free interleaving from each opening, greedily in the words; story k has the seed `settings.seed` + k."""
    from dreamllm.data.document import Text
    from dreamllm.model import generate
    from dreamllm.model.sampling import PictureSampling

    how = PictureSampling(settings.drawing.scheduler, settings.drawing.steps, settings.drawing.guidance)
    limits = generate.TextSampling(
        max_new_tokens=settings.stories.max_new_tokens, max_pictures=settings.stories.max_pictures
    )
    records: Records = []
    images: Images = {}
    for batch in _batches(items, settings.drawing.batch_size, "stories"):
        seeds = [settings.seed + len(records) + k for k in range(len(batch))]
        documents = [prompts.opening(item.id, item.opening) for item in batch]
        told = generate.interleave(model, processor, documents, seeds, limits, how)
        for item, seed, continuation in zip(batch, seeds, told, strict=True):
            parts = []
            for part in continuation.parts:
                if isinstance(part, Text):
                    parts.append({"text": part.text})
                else:
                    name = f"{len(images):06d}.png"
                    images[name] = part.image
                    parts.append({"image": name})
            record = _record(item.id, item.opening, seed)
            records.append(record | {"parts": parts, "stopped": continuation.stopped})
    return records, images


def language_model(folder: Path, template: str) -> tuple[Any, Vocabulary, int]:
    """The foundation language model, its vocabulary (without pictures) and its context."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dreamllm.model import precision

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    precision.for_inference(model, _device())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = tokenizer.eos_token_id
    vocabulary = Vocabulary(
        encode=lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids,
        bos=tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos,
        eos=eos,
        pad=eos,
        **dict.fromkeys(["im_patch", "im_start", "im_end", "dream_start", "dream_end"], -1),
        num_patches=0,
        num_queries=0,
        template=TEMPLATES[template],
    )
    return model, vocabulary, getattr(model.config, "max_position_embeddings", 2048)


def choose(
    model: Any,
    vocabulary: Vocabulary,
    context: int,
    items: Sequence[benchmarks.ChoiceItem],
    settings: EvaluationSettings,
) -> Records:
    """Log-likelihood of each option after its question; official prompts go without <s>, as in the official code."""
    skipped = 1 if settings.prompts == "official" else 0
    records: Records = []
    for batch in _batches(items, settings.text.batch_size, "language"):
        rows: list[tuple[list[int], int]] = []
        for item in batch:
            question, answered = prompts.choices(item, settings.prompts)
            asked = lay_out_prompt(question, vocabulary, "comprehension", context).input_ids[skipped:]
            for option in answered:
                ids = lay_out_prompt(option, vocabulary, "comprehension", context).input_ids[skipped:]
                shared = (i for i, (a, b) in enumerate(zip(asked, ids, strict=False)) if a != b)
                rows.append((list(ids), next(shared, min(len(asked), len(ids)))))
        values = iter(loglikelihoods(model, rows, vocabulary.pad))
        for item in batch:
            prompt = prompts.shown(prompts.choices(item, settings.prompts)[0])
            numbers = [next(values) for _ in item.options]
            options = {"options": list(item.options), "loglikelihoods": numbers}
            records.append(_record(item.id, prompt, settings.seed) | options)
    return records


def loglikelihoods(model: Any, rows: Sequence[tuple[list[int], int]], pad: int) -> list[float]:
    """Summed log-likelihoods of the ends of some token rows under a causal language model.

    rows: (token ids, index of the first token that counts). Raises ValueError for a row without a token that counts.
    """
    import torch

    if any(start >= len(ids) or start < 1 for ids, start in rows):
        raise ValueError("an option adds no token to its question")
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows])  # (B, T)
    with torch.inference_mode():
        logits = model(input_ids=tokens.to(model.device)).logits.float().cpu()  # (B, T, V)
    gained = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]  # (B, T - 1)
    return [float(gained[row, start - 1 : len(ids) - 1].sum()) for row, (ids, start) in enumerate(rows)]


def protocol(args: argparse.Namespace, settings: EvaluationSettings) -> dict[str, Any]:
    """How the predictions were made: settings, digests of the models, versions. No paths and no time."""
    wanted = {"llm": ["llm"], "sd": ["sd"], "sd_finetuned": ["sd"]}.get(args.model, ["llm", "clip", "sd"])
    return {
        "settings": settings.model_dump(mode="json", exclude={"split", "limit", "pictures", "latency", "attention"}),
        "foundations": {name: digest(args.foundations / name) for name in wanted},
        "checkpoints": {folder.name: digest(folder) for folder in args.checkpoints},
        "libraries": versions(),
        "machine": machine(),
    }


def _of_its_own(use: BenchmarkUse) -> dict[str, Any]:
    """What the protocol says of a benchmark that is not one of the emoji world's six."""
    return {"benchmark": use.model_dump(mode="json")} if use.source or use.shots else {}


def _record(id_: str, prompt: str, seed: int) -> dict[str, Any]:
    return {"id": id_, "prompt": prompt, "seed": seed}


def _batches(items: Sequence[Any], size: int, what: str) -> Iterator[Sequence[Any]]:
    """The items in batches, with a progress bar."""
    from tqdm import tqdm

    for start in tqdm(range(0, len(items), size), desc=what, unit="batch", mininterval=5):
        yield items[start : start + size]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
