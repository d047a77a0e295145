"""What a trained DreamLLM makes of a Document: text, a picture, or a freely interleaved continuation.

    write(model, processor, prompts)        text alone, by transformers' `generate`
    draw(model, processor, prompts)         one picture per prompt
    interleave(model, processor, prompts)   text and pictures, where and as the model likes (paper section 3.2)

In free interleaving, a sampled <dream_start> draws a picture from the dream queries' states, CLIP reads the picture
back, and the text goes on with everything before it in the cache. The authors' code lays its training data out for this
loop, but does not contain it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from transformers import DynamicCache

from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.data.layout import Mode
from dreamllm.data.packing import collate
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.packed import gather_slots
from dreamllm.model.processor import SPECIAL_TOKENS, DreamLLMProcessor, PromptProblem
from dreamllm.model.sampling import Drawing, draw_states
from dreamllm.seeds import seed_of

Model = DreamLLMForConditionalGeneration


@dataclass(frozen=True)
class Writing:
    """How text is chosen while interleaving, and where it ends. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    max_pictures: int = 8


@dataclass(frozen=True)
class Continuation:
    """What came after a prompt, and why it ended.

    stopped: "end" by the model's own </s>; "tokens" or "pictures" when that many were made and it wanted more;
    "context" when the next token or picture block would not have fitted, so that no block is ever cut
    """

    prompt: Document
    parts: tuple[Part, ...]
    stopped: Literal["end", "tokens", "pictures", "context"]

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
    """Continue each prompt with text alone, greedily or by beam search, up to </s>; prompts are batched.

    Raises PromptProblem for a prompt that leaves no room in the context.
    """
    inputs = processor.prompts(prompts, mode).to(model.device)
    length = inputs["input_ids"].shape[1]
    if length >= processor.context:
        raise PromptProblem(f"a prompt of {length} tokens leaves no room to write in a context of {processor.context}")
    output = model.generate(
        **inputs,
        max_new_tokens=min(max_new_tokens, processor.context - length),
        num_beams=num_beams,
        do_sample=False,
        suppress_tokens=_never_written(processor, drawing=False),
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
    drawing: Drawing,
    *,
    mode: Mode = "joint",
) -> list[Image.Image]:
    """Draw one picture after each prompt, with a seed for each; all at once, so cut long lists into batches.

    Raises LayoutProblem for a prompt that does not fit the context.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
    return draw_states(model, query_states(model, processor, prompts, mode=mode), model.null_states(), seeds, drawing)


@torch.no_grad()
def query_states(
    model: Model, processor: DreamLLMProcessor, prompts: Sequence[Document], *, mode: Mode = "joint"
) -> torch.Tensor:
    """The states (M, Q, D) of the dream queries after each prompt, in one forward pass.

    Prompts are padded behind their queries, where the causal mask hides the padding: the states of a prompt do not
    depend on its batch mates (in the official code they do).
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
    writing: Writing,
    drawing: Drawing,
    *,
    mode: Literal["creation", "joint"] = "joint",
) -> list[Continuation]:
    """Continue each prompt with text and pictures. Each is written by itself; pictures due are drawn together.

    A continuation depends on its prompt and its seed, not on the others. In mode "creation" pictures are drawn, but not
    read back. Raises LayoutProblem for a prompt that does not fit the context.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
    null_states = model.null_states()
    writers = [
        _write_and_dream(model, processor, prompt, mode, writing, torch.Generator().manual_seed(seed_of(seed, "text")))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    finished: dict[int, Continuation] = {}
    answers: dict[int, Image.Image | None] = dict.fromkeys(range(len(prompts)))  # to send to the writers; None starts
    drawn = [0] * len(prompts)
    while answers:
        wanted: dict[int, torch.Tensor] = {}
        for index, answer in answers.items():
            try:
                wanted[index] = writers[index].send(answer)
            except StopIteration as end:
                finished[index] = end.value
        answers = {}
        if wanted:
            picture_seeds = [seed_of(seeds[index], "picture", drawn[index]) for index in wanted]
            pictures = draw_states(model, torch.cat(list(wanted.values())), null_states, picture_seeds, drawing)
            answers = dict(zip(wanted, pictures, strict=True))
            for index in wanted:
                drawn[index] += 1
    return [finished[index] for index in range(len(prompts))]


def _write_and_dream(
    model: Model,
    processor: DreamLLMProcessor,
    prompt: Document,
    mode: Mode,
    writing: Writing,
    generator: torch.Generator,
) -> Generator[torch.Tensor, Image.Image, Continuation]:
    """Write one continuation; yields the query states (1, Q, D) of a picture and wants to be sent the picture."""
    vocabulary = processor.vocabulary
    never = _never_written(processor, drawing=True)
    role = "assistant" if prompt.kind == "conversation" else ""
    dream = [vocabulary.dream_start, *[vocabulary.im_patch] * vocabulary.num_queries, vocabulary.dream_end]
    image = [vocabulary.im_start, *[vocabulary.im_patch] * vocabulary.num_patches, vocabulary.im_end]
    if mode == "creation":
        image = []
    cache = DynamicCache(config=model.config.text_config)

    def advance(embeds: torch.Tensor) -> torch.Tensor:
        """Let the language model read on: embeddings (1, T, D) -> last hidden states (1, T, D)."""
        outputs = model.language_model.base_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return outputs.last_hidden_state

    def tensor(values: list) -> torch.Tensor:
        return torch.tensor([values], device=model.device)

    sequence = processor.lay_out_prompt(prompt, mode)
    given = collate([[sequence]], vocabulary, processor.read_pixels, None).to(model.device)
    hidden = advance(model.embed(given.input_ids, given.read_pixels, given.read_slots, given.draw_slots))
    parts: list[Part] = []
    words: list[int] = []
    written = pictures = 0

    def finish(stopped: str) -> Continuation:
        return Continuation(prompt, tuple(_with_words(parts, words, processor, role)), stopped)

    while True:
        logits = model.get_output_embeddings()(hidden[0, -1]).float()  # (V,)
        logits[never] = -torch.inf
        token = choose(logits, writing.temperature, writing.top_p, generator)
        if token == vocabulary.eos:
            return finish("end")
        room = processor.context - cache.get_seq_length()
        if token == vocabulary.dream_start:
            if pictures == writing.max_pictures:
                return finish("pictures")
            if room < len(dream) + len(image):
                return finish("context")
            hidden = advance(model.embed(tensor(dream), draw_slots=tensor([0, 1])))
            picture = yield hidden[:, 1:-1]
            pictures += 1
            parts, words = [*_with_words(parts, words, processor, role), Picture(picture, role)], []
            if image:
                pixels = processor.read_pixels([picture]).to(model.device)
                hidden = advance(model.embed(tensor(image), pixels, tensor([0, 1])))
        else:
            if written == writing.max_new_tokens:
                return finish("tokens")
            if room < 1:
                return finish("context")
            words.append(token)
            written += 1
            hidden = advance(model.embed(tensor([token])))


def choose(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token by its logits (V,): the best at temperature 0, else sampled from the smallest set with mass top_p."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(-1).cpu().sort(descending=True)
    probabilities[probabilities.cumsum(0) - probabilities >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _with_words(parts: list[Part], words: list[int], processor: DreamLLMProcessor, role: str) -> list[Part]:
    """The parts with the words written since as a last Text, if there are any."""
    text = processor.decode(words, skip_special_tokens=True).strip()
    return [*parts, Text(text, role)] if text else parts


def _never_written(processor: DreamLLMProcessor, *, drawing: bool) -> list[int]:
    """Special tokens that are no target in training; without `drawing`, <dream_start> too."""
    ids = set(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))) | {processor.vocabulary.bos}
    if drawing:
        ids -= {processor.vocabulary.dream_start}
    return sorted(ids - {processor.vocabulary.eos})
