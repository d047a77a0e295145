"""Generation with a trained DreamLLM: text, a picture, or freely interleaved text and pictures after a Document.

    write(model, processor, prompts)        text alone, by transformers' `generate`
    draw(model, processor, prompts)         one picture per prompt
    interleave(model, processor, prompts)   text and pictures, each where the model chooses (paper section 3.2)

When the model samples <dream_start> in free interleaving, a picture is drawn from the states of the dream queries, CLIP
reads it back, and text generation continues with everything before it in the cache. The authors' code lays out its
training data for this loop, but does not contain the loop itself.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import DynamicCache, LogitsProcessorList

from dreamllm.data.document import Document, Part, Picture, Role, Text
from dreamllm.data.layout import Mode
from dreamllm.data.packing import collate
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import FiniteLogits, check_finite
from dreamllm.model.packed import gather_slots
from dreamllm.model.processor import SPECIAL_TOKENS, DreamLLMProcessor, PromptProblem
from dreamllm.model.sampling import PictureSampling, SamplingProblem, check_fit, draw_from_states
from dreamllm.seeds import seed_of

Model = DreamLLMForConditionalGeneration
Stopped = Literal["end", "tokens", "pictures", "context"]


@dataclass(frozen=True)
class TextSampling:
    """How tokens are sampled in free interleaving, and where it stops. Temperature 0 is greedy decoding."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    max_pictures: int = 8


def check_text_sampling(sampling: TextSampling) -> None:
    """Raises SamplingProblem for values out of range."""
    if not 0 <= sampling.temperature < float("inf"):
        raise SamplingProblem(f"temperature is {sampling.temperature}, not a number from 0")
    if not 0 < sampling.top_p <= 1:
        raise SamplingProblem(f"top_p is {sampling.top_p}, not above 0 and up to 1")
    for name in ("max_new_tokens", "max_pictures"):
        if (value := getattr(sampling, name)) < 0:
            raise SamplingProblem(f"{name} is {value}, less than 0")


@dataclass(frozen=True)
class Continuation:
    """What the model generated after a prompt, and why it stopped.

    stopped: "end": the model wrote </s>.  "tokens", "pictures": it reached the maximum of TextSampling and would have
    continued.  "context": the next token or picture block does not fit the context; no block is ever truncated.
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
        eos_token_id=processor.vocabulary.eos,
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
) -> list[Continuation]:
    """Continue each prompt with text and pictures, with one seed for each prompt.

    Text is written for one prompt at a time; the pictures that are due next are drawn as one batch. A continuation
    depends on its own prompt and seed only. In mode "creation" pictures are drawn, but not read back.

    Raises LayoutProblem for a prompt that does not fit the context, ValueError for another number of seeds,
    SamplingProblem for settings that do not fit, NonFiniteValues where a part of the model gives NaN.
    """
    _check_seeds(prompts, seeds)
    check_text_sampling(text_sampling)
    check_fit(model, picture_sampling)
    null = null_states(model, processor, picture_sampling)
    writers = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed_of(seed, "text"))
        writers.append(_interleave_one(model, processor, prompt, mode, text_sampling, generator))
    continuations: dict[int, Continuation] = {}
    num_drawn = [0] * len(prompts)
    pictures: dict[int, Any] = dict.fromkeys(range(len(prompts)))  # by prompt; None starts a writer
    while pictures:
        states: dict[int, torch.Tensor] = {}  # by prompt: the query states (1, Q, D) of its next picture
        for index, picture in pictures.items():
            try:
                states[index] = writers[index].send(picture)
            except StopIteration as end:
                continuations[index] = end.value
        pictures = {}
        if states:
            picture_seeds = [seed_of(seeds[index], "picture", num_drawn[index]) for index in states]
            batch = torch.cat(list(states.values()))  # (M, Q, D)
            names = [prompts[index].id for index in states]
            drawn = draw_from_states(model, batch, null, picture_seeds, picture_sampling, names)
            pictures = dict(zip(states, drawn, strict=True))
            for index in states:
                num_drawn[index] += 1
    return [continuations[index] for index in range(len(prompts))]


def _interleave_one(
    model: Model,
    processor: DreamLLMProcessor,
    prompt: Document,
    mode: Mode,
    sampling: TextSampling,
    generator: torch.Generator,
) -> Generator[torch.Tensor, Image.Image, Continuation]:
    """Continue one prompt: yields the query states (1, Q, D) of each picture, and expects that picture to be sent."""
    vocabulary = processor.vocabulary
    suppressed = _suppressed_tokens(processor, allow_pictures=True)
    role: Role = "assistant" if prompt.kind == "conversation" else ""
    dream = [vocabulary.dream_start, *[vocabulary.im_patch] * vocabulary.num_queries, vocabulary.dream_end]
    image = [vocabulary.im_start, *[vocabulary.im_patch] * vocabulary.num_patches, vocabulary.im_end]
    if mode == "creation":
        image = []
    cache = DynamicCache(config=model.config.text_config)

    def advance(embeds: torch.Tensor) -> torch.Tensor:
        """Append embeddings (1, T, D) to the cached sequence; returns their last hidden states (1, T, D)."""
        outputs = model.language_model.base_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return outputs.last_hidden_state

    def tensor(values: list) -> torch.Tensor:
        return torch.tensor([values], device=model.device)

    sequence = processor.lay_out_prompt(prompt, mode)
    batch = collate([[sequence]], vocabulary, processor.read_pixels, None).to(model.device)
    hidden = advance(model.embed(batch.input_ids, batch.read_pixels, batch.read_slots, batch.draw_slots))
    parts: list[Part] = []
    text_ids: list[int] = []  # tokens written since the last picture
    num_tokens = num_pictures = 0

    def finish(stopped: Stopped) -> Continuation:
        return Continuation(prompt, tuple(_with_text(parts, text_ids, processor, role)), stopped)

    while True:
        logits = model.get_output_embeddings()(hidden[0, -1]).float()  # (V,)
        check_finite(logits[None].clamp(min=-1), [prompt.id], "the logits")
        logits[suppressed] = -torch.inf
        token = sample_token(logits, sampling.temperature, sampling.top_p, generator)
        if token == vocabulary.eos:
            return finish("end")
        room = processor.context - cache.get_seq_length()
        if token == vocabulary.dream_start:
            if num_pictures == sampling.max_pictures:
                return finish("pictures")
            if room < len(dream) + len(image):
                return finish("context")
            hidden = advance(model.embed(tensor(dream), draw_slots=tensor([0, 1])))
            picture = yield hidden[:, 1:-1]
            num_pictures += 1
            parts, text_ids = [*_with_text(parts, text_ids, processor, role), Picture(picture, role)], []
            if image:
                pixels = processor.read_pixels([picture]).to(model.device)
                hidden = advance(model.embed(tensor(image), pixels, tensor([0, 1])))
        else:
            if num_tokens == sampling.max_new_tokens:
                return finish("tokens")
            if room < 1:
                return finish("context")
            text_ids.append(token)
            num_tokens += 1
            hidden = advance(model.embed(tensor([token])))


def sample_token(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Choose a token from its logits (V,): the argmax at temperature 0, else nucleus sampling.

    The nucleus is the smallest set of tokens with probability mass `top_p` (arXiv 1904.09751).
    """
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(-1).cpu().sort(descending=True)
    probabilities[probabilities.cumsum(0) - probabilities >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _check_seeds(prompts: Sequence[Document], seeds: Sequence[int]) -> None:
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")


def _with_text(parts: list[Part], text_ids: list[int], processor: DreamLLMProcessor, role: Role) -> list[Part]:
    """The parts, followed by the decoded tokens as one Text unless they are blank."""
    text = processor.decode(text_ids, skip_special_tokens=True).strip()
    return [*parts, Text(text, role)] if text else parts


def _suppressed_tokens(processor: DreamLLMProcessor, *, allow_pictures: bool) -> list[int]:
    """Ids of the special tokens that are never a target in training; <dream_start> too unless `allow_pictures`."""
    ids = set(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))) | {processor.vocabulary.bos}
    if allow_pictures:
        ids -= {processor.vocabulary.dream_start}
    return sorted(ids - {processor.vocabulary.eos})
