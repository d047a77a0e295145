"""Generation with a trained DreamLLM: text, a picture, or freely interleaved text and pictures after a Document.

    write(model, processor, prompts)        text alone, by transformers' `generate`
    draw(model, processor, prompts)         one picture per prompt
    interleave(model, processor, prompts)   text and pictures, each where the model chooses (paper section 3.2)

When the model samples <dream_start> in free interleaving, a picture is drawn from the states of the dream queries, CLIP
reads it back, and text generation continues with everything before it in the cache (`decoding.py`). The authors' code
lays out its training data for this loop, but does not contain the loop itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.streamers import BaseStreamer

from dreamllm.data.document import Document, Part, Text
from dreamllm.data.layout import Mode
from dreamllm.data.packing import collate
from dreamllm.model.decoding import Row, Stopped, decode
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import FiniteLogits
from dreamllm.model.packed import gather_slots
from dreamllm.model.processor import SPECIAL_TOKENS, DreamLLMProcessor, PromptProblem
from dreamllm.model.sampling import PictureSampling, SamplingProblem, check_fit, draw_from_states
from dreamllm.seeds import seed_of

Model = DreamLLMForConditionalGeneration


@dataclass(frozen=True)
class TextSampling:
    """How tokens are sampled in free interleaving, and where it stops.

    temperature, top_k, top_p, repetition_penalty: as in transformers' GenerationConfig, except that temperature 0 is
    greedy decoding and top_k 0 is none.  max_new_tokens: of text.  max_pictures: generated
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    max_pictures: int = 8
    top_k: int = 0
    repetition_penalty: float = 1.0

    def sampling_options(self) -> dict[str, Any]:
        """The arguments of transformers' `generate` that say whether and how to sample."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


OWN_LIMITS = {
    **dict.fromkeys(["max_length", "max_new_tokens"], "set max_new_tokens of TextSampling"),
    **dict.fromkeys(["do_sample", "temperature", "top_k", "top_p", "repetition_penalty"], "set it in TextSampling"),
    **dict.fromkeys(["num_beams", "num_return_sequences", "assistant_model"], "it writes one continuation by itself"),
    **dict.fromkeys(
        ["min_length", "min_new_tokens", "exponential_decay_length_penalty", "begin_suppress_tokens"],
        "it counts the padding and the images of a batch as words",
    ),
    **dict.fromkeys(["encoder_repetition_penalty", "encoder_no_repeat_ngram_size"], "the model has no encoder"),
    "stop_strings": "pass stopping_criteria=[StopStringCriteria(processor.tokenizer, [...])]",
}
"""Arguments of `generate` that `interleave` does not take, and what to do instead."""


def check_text_sampling(sampling: TextSampling) -> None:
    """Raises SamplingProblem for values out of range."""
    if not 0 <= sampling.temperature < float("inf"):
        raise SamplingProblem(f"temperature is {sampling.temperature}, not a number from 0")
    if not 0 < sampling.top_p <= 1:
        raise SamplingProblem(f"top_p is {sampling.top_p}, not above 0 and up to 1")
    if not 0 < sampling.repetition_penalty < float("inf"):
        raise SamplingProblem(f"repetition_penalty is {sampling.repetition_penalty}, not above 0; 1 is none")
    if sampling.temperature == 0 and (sampling.top_k or sampling.top_p < 1):
        raise SamplingProblem("at temperature 0, top_k and top_p have no effect; set a temperature above 0")
    for name in ("max_new_tokens", "max_pictures", "top_k"):
        if (value := getattr(sampling, name)) < 0:
            raise SamplingProblem(f"{name} is {value}, less than 0")


@dataclass(frozen=True)
class Continuation:
    """What the model generated after a prompt, and why it stopped.

    stopped: "end": the model wrote </s>.  "tokens", "pictures": it reached the maximum of TextSampling and would have
    continued.  "context": the next token or picture block does not fit the context; no block is ever truncated.
    "criteria": a stopping criterion of the caller was met.
    """

    prompt: Document
    parts: tuple[Part, ...]
    stopped: Stopped

    @property
    def document(self) -> Document:
        """Prompt and continuation as one document."""
        kind = "interleaved" if self.prompt.kind == "text" else self.prompt.kind
        return replace(self.prompt, kind=kind, parts=(*self.prompt.parts, *self.parts))


@torch.no_grad()
def write(
    model: Model,
    processor: DreamLLMProcessor,
    prompts: Sequence[Document],
    *,
    mode: Mode = "comprehension",
    max_new_tokens: int = 64,
    num_beams: int = 1,
) -> list[str]:
    """Continue each prompt with text alone, greedily or by beam search, up to </s>; all prompts are one batch.

    Raises PromptProblem for a prompt that leaves no room in the context, NonFiniteValues for logits that are NaN.
    """
    if not prompts:
        return []
    inputs = processor.prompts(prompts, mode).to(model.device)
    length = inputs["input_ids"].shape[1]
    if length >= processor.context:
        raise PromptProblem(f"a prompt of {length} tokens leaves no room to write in a context of {processor.context}")
    output = model.generate(
        **inputs,
        max_new_tokens=min(max_new_tokens, processor.context - length),
        num_beams=num_beams,
        do_sample=False,
        logits_processor=LogitsProcessorList([FiniteLogits([prompt.id for prompt in prompts])]),
        suppress_tokens=_suppressed_tokens(processor, allow_pictures=False),
        eos_token_id=list(processor.vocabulary.ends),
        pad_token_id=processor.vocabulary.pad,
    )
    return [text.strip() for text in processor.batch_decode(output[:, length:], skip_special_tokens=True)]


@torch.no_grad()
def draw(
    model: Model,
    processor: DreamLLMProcessor,
    prompts: Sequence[Document],
    seeds: Sequence[int],
    sampling: PictureSampling,
    *,
    mode: Mode = "joint",
) -> list[Image.Image]:
    """Draw one picture after each prompt, with one seed for each. All prompts are one batch: split long lists.

    Raises LayoutProblem for a prompt that does not fit the context, ValueError for another number of seeds,
    SamplingProblem for settings that do not fit, NonFiniteValues where a part of the model gives NaN.
    """
    _check_seeds(prompts, seeds)
    if not prompts:
        return []
    check_fit(model, sampling)
    states = query_states(model, processor, prompts, mode=mode)
    names = [prompt.id for prompt in prompts]
    return draw_from_states(model, states, null_states(model, processor, sampling), seeds, sampling, names)


@torch.no_grad()
def null_states(model: Model, processor: DreamLLMProcessor, sampling: PictureSampling) -> torch.Tensor:
    """Query states (1, Q, D) that guidance leads away from: of the negative prompt, by default the empty one."""
    if not sampling.negative_prompt:
        return model.null_states()
    negative = Document("the negative prompt", "text", (Text(sampling.negative_prompt),))
    return query_states(model, processor, [negative])


@torch.no_grad()
def query_states(
    model: Model, processor: DreamLLMProcessor, prompts: Sequence[Document], *, mode: Mode = "joint"
) -> torch.Tensor:
    """Last hidden states (M, Q, D) of the dream queries after each of M prompts, in one forward pass.

    Padding comes after the queries, where the causal mask hides it, so the states of a prompt do not depend on the
    other prompts of the batch (in the official code they do).
    """
    sequences = [processor.lay_out_prompt(prompt, mode, draw=True) for prompt in prompts]
    batch = collate([[sequence] for sequence in sequences], processor.vocabulary, processor.read_pixels, None)
    hidden = model(**batch.to(model.device).inputs() | {"labels": None, "logits_to_keep": 1}).last_hidden_state
    slots = torch.tensor([[row, sequence.draw_slots[-1].start] for row, sequence in enumerate(sequences)])
    return gather_slots(hidden, slots.to(hidden.device), model.config.num_dream_queries)


@torch.no_grad()
def interleave(
    model: Model,
    processor: DreamLLMProcessor,
    prompts: Sequence[Document],
    seeds: Sequence[int],
    text_sampling: TextSampling,
    picture_sampling: PictureSampling,
    *,
    mode: Literal["creation", "joint"] = "joint",
    streamer: BaseStreamer | None = None,
    logits_processor: Sequence[LogitsProcessor] | None = None,
    **options: Any,
) -> list[Continuation]:
    """Continue each prompt with text and pictures, with one seed for each prompt. All prompts are one batch.

    A continuation depends on its own prompt and seed only, up to the rounding of sums, which the size of a batch
    changes; in fp32, texts are the same. In mode "creation" pictures are drawn, but not read back.

    streamer, logits_processor: as in transformers' `generate`, the former for a single prompt only.  options: further
    arguments of `generate`, such as stopping_criteria, min_p, no_repeat_ngram_size or max_time. Processors and criteria
    get fewer rows as continuations end.

    Raises LayoutProblem for a prompt that does not fit the context, ValueError for another number of seeds,
    SamplingProblem for settings that do not fit, NonFiniteValues where a part of the model gives NaN.
    """
    _check_seeds(prompts, seeds)
    check_text_sampling(text_sampling)
    check_fit(model, picture_sampling)
    for name in options.keys() & OWN_LIMITS.keys():
        raise SamplingProblem(f"interleave takes no {name}: {OWN_LIMITS[name]}")
    if streamer is not None and len(prompts) != 1:
        raise SamplingProblem(f"a streamer follows one prompt, not {len(prompts)}")
    if not prompts:
        return []
    null = null_states(model, processor, picture_sampling)

    def draw_rows(rows: Sequence[Row], states: torch.Tensor) -> list[Image.Image]:
        picture_seeds = [seed_of(row.seed, "picture", row.num_pictures) for row in rows]
        names = [row.prompt.id for row in rows]
        return draw_from_states(model, states, null, picture_seeds, picture_sampling, names)

    rows = [
        Row(prompt, seed, torch.Generator().manual_seed(seed_of(seed, "text")))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    vocabulary = processor.vocabulary
    # By itself `generate` makes one that holds the padding of each row of the whole batch.
    factor = float(text_sampling.repetition_penalty)
    penalty = [RepetitionPenaltyLogitsProcessor(factor)] if factor != 1 else []
    inputs = processor.prompts(prompts, mode).to(model.device)
    if streamer is not None:
        streamer.put(inputs["input_ids"].cpu())
    model.generate(
        **inputs,
        custom_generate=decode,
        processor=processor,
        rows=rows,
        draw=draw_rows,
        reads_back=mode == "joint",
        max_tokens=text_sampling.max_new_tokens,
        max_pictures=text_sampling.max_pictures,
        follower=streamer,
        max_new_tokens=2 * processor.context,  # rows and gaps are shorter; `decode` knows how long each row may be
        suppress_tokens=_suppressed_tokens(processor, allow_pictures=True),
        eos_token_id=[*vocabulary.ends, vocabulary.dream_start],
        pad_token_id=vocabulary.pad,
        logits_processor=LogitsProcessorList([*penalty, *(logits_processor or [])]),
        **text_sampling.sampling_options(),
        **options,
    )
    return [Continuation(row.prompt, tuple(row.parts), cast(Stopped, row.stopped)) for row in rows]


def _check_seeds(prompts: Sequence[Document], seeds: Sequence[int]) -> None:
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")


def _suppressed_tokens(processor: DreamLLMProcessor, *, allow_pictures: bool) -> list[int]:
    """Ids of the special tokens that are never a target in training; <dream_start> too unless `allow_pictures`."""
    ids = set(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))) | {processor.vocabulary.bos}
    if allow_pictures:
        ids -= {processor.vocabulary.dream_start}
    return sorted(ids.difference(processor.vocabulary.ends))
