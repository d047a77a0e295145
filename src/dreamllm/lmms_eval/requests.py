"""lmms-eval's requests as Documents, and the model's answers to them. Does not import lmms-eval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.data.images import upright_rgb
from dreamllm.data.layout import LayoutProblem

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor

DEFAULT_MAX_NEW_TOKENS = 1024
IGNORED = {"do_sample", "use_cache", "return_dict_in_generate", "output_scores"}
"""Generation arguments of tasks that change no answer: temperature says whether to sample."""


class RequestProblem(ValueError):
    """A request that the model cannot answer: says of which task and why."""


@dataclass(frozen=True)
class Options:
    """How a request is answered. until: texts at the first of which the answer ends, itself left out"""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    until: tuple[str, ...] = ()


def options_of(arguments: Mapping[str, Any], task: str) -> Options:
    """The generation arguments of a task. Raises RequestProblem for those that would change answers but are unknown."""
    given = {key: value for key, value in arguments.items() if value is not None and key not in IGNORED}
    until = given.pop("until", ())
    if unknown := sorted(given.keys() - Options.__dataclass_fields__.keys()):
        raise RequestProblem(f"task {task}: DreamLLM takes no generation arguments {', '.join(unknown)}")
    texts = [until] if isinstance(until, str) else until
    options = Options(**given, until=tuple(text for text in texts if text))
    return options if options.temperature else Options(**{**vars(options), "top_p": 1.0, "top_k": 0})


def document_of(id_: str, messages: Sequence[Mapping[str, Any]]) -> Document:
    """A conversation of lmms-eval's messages: [{"role", "content": [{"type": "text" | "image", "text" | "url"}]}].

    The words of a system message stand first in the user's turn, as in the evaluation code of DreamLLM's authors.
    Raises RequestProblem for videos and sound, images that are no pictures, and a conversation that asks nothing.
    """
    parts: list[Part] = []
    for message in messages:
        role: Role = "assistant" if message["role"] == "assistant" else "user"
        for content in message["content"]:
            if content["type"] == "text":
                parts += [Text(content["text"].strip(), role)] if content["text"].strip() else []
            elif content["type"] == "image":
                parts.append(Picture(_image(content["url"], id_), role))
            else:
                raise RequestProblem(f"{id_}: DreamLLM reads text and images, no {content['type']}")
    if not parts or parts[0].role != "user":
        raise RequestProblem(f"{id_}: a conversation starts with the user's words or images")
    return Document(id_, "conversation", tuple(parts))


def question(id_: str, words: str, images: Sequence[Any]) -> Document:
    """A user's turn: the images where the words have `<image>`, before the words if they have none.

    Raises RequestProblem as `document_of`, and where the numbers of placeholders and images differ.
    """
    from dreamllm.model.processor import PromptProblem, parts_of

    try:
        parts = parts_of(words, images)
    except PromptProblem as problem:
        raise RequestProblem(f"{id_}: {problem}") from None
    content = [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "url": part.image}
        for part in parts
    ]
    return document_of(id_, [{"role": "user", "content": content}])


def _image(image: Any, id_: str) -> Image.Image:
    """A picture of PIL, or of a local file."""
    if isinstance(image, str):
        path = image
        try:
            image = Image.open(path)
        except OSError as error:
            raise RequestProblem(f"{id_}: cannot read the image {path[:200]!r}: {error}") from None
    if not isinstance(image, Image.Image):
        raise RequestProblem(f"{id_}: expected an image of PIL, found {type(image).__name__}")
    return upright_rgb(image)


def batches(lengths: Sequence[int], size: int, longest: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of at most `size`, longest first, so that batch mates have similar lengths.

    lengths: of the prompts in tokens.  longest: prompt that leaves room for a whole answer; a longer one is a batch of
    its own, because its batch mates' answers would be cut with its own
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    yield from ([index] for index in order if lengths[index] > longest)
    rest = [index for index in order if lengths[index] <= longest]
    yield from (rest[start : start + size] for start in range(0, len(rest), size))


def lengths_of(processor: DreamLLMProcessor, documents: Sequence[Document]) -> list[int | None]:
    """Lengths of prompts in tokens; None for one that leaves no room in the context to answer."""
    lengths: list[int | None] = []
    for document in documents:
        try:
            length = len(processor.lay_out_prompt(document, "comprehension"))
        except LayoutProblem:
            length = processor.context
        lengths.append(length if length < processor.context else None)
    return lengths


def answer(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    documents: Sequence[Document],
    options: Options,
    seeds: Sequence[int],
) -> list[str]:
    """Answers in words to one batch, without sampling those of `dreamllm ask`. seeds: one for each, for sampling.

    Raises SamplingProblem for values out of range, and for beams together with sampling.
    """
    from transformers import SuppressTokensLogitsProcessor

    from dreamllm.model.generate import TextSampling, interleave, write
    from dreamllm.model.sampling import PictureSampling, SamplingProblem

    if not options.temperature:
        texts = write(model, processor, documents, max_new_tokens=options.max_new_tokens, num_beams=options.num_beams)
        return [cut(text, options.until) for text in texts]
    if options.num_beams > 1:
        raise SamplingProblem(f"num_beams is {options.num_beams} and temperature {options.temperature}: choose one")
    sampling = TextSampling(options.temperature, options.top_p, options.max_new_tokens, 0, options.top_k)
    no_drawing = SuppressTokensLogitsProcessor([processor.vocabulary.dream_start], device=model.device)
    written = interleave(model, processor, documents, seeds, sampling, PictureSampling(), logits_processor=[no_drawing])
    texts = ["".join(part.text for part in one.parts if isinstance(part, Text)).strip() for one in written]
    return [cut(text, options.until) for text in texts]


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first place of any of `until`."""
    for end in until:
        text = text.split(end)[0]
    return text.strip()


def losses(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    questions: Sequence[Document],
    answers: Sequence[str],
) -> list[tuple[float, bool]]:
    """Mean negative log-likelihood of each answer's tokens after its question, and whether they are the greedy ones.

    One batch. A loss, not a likelihood, because lmms-eval chooses the option with the least (its LLaVA returns this).
    Raises LayoutProblem for a question that does not fit the context with its answer, RequestProblem for an answer
    without tokens, NonFiniteValues for logits that are NaN.
    """
    import torch

    from dreamllm.model.finite import check_finite

    answered, starts = [], []
    for document, words in zip(questions, answers, strict=True):
        whole = Document(document.id, "conversation", (*document.parts, Text(words.strip(), "assistant")))
        starts.append(len(processor.lay_out_prompt(document, "comprehension")))
        if len(processor.lay_out_prompt(whole, "comprehension")) == starts[-1]:
            raise RequestProblem(f"{document.id}: the answer {words!r} has no tokens")
        answered.append(whole)
    inputs = processor.prompts(answered, "comprehension", padding_side="right").to(model.device)
    ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()  # (B, T), (B,)
    first = min(starts) - 1  # position whose logits are the first that count
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=ids.shape[1] - first).logits.float()  # (B, T - first, V)
    results = []
    for row, (start, end) in enumerate(zip(starts, lengths, strict=True)):
        scores, targets = logits[row, start - 1 - first : end - 1 - first], ids[row, start:end]  # (K, V), (K,)
        loss = torch.nn.functional.cross_entropy(scores, targets)
        check_finite(loss[None], [answered[row].id], "losses")
        results.append((float(loss), bool((scores.argmax(-1) == targets).all())))
    return results
