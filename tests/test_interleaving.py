"""Batched free interleaving takes transformers' sampling arguments, and rows do not depend on each other."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TextStreamer,
)

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.model.generate import TextSampling, interleave
from dreamllm.model.sampling import PictureSampling, SamplingProblem

QUICK = PictureSampling(steps=1, guidance=1.0)
MODEL, PROCESSOR = tiny.build()
OPENINGS = ["A ship.", "A photo of a dog running on the beach.", "The river", "Then blend the soup until it is smooth"]
PROMPTS = [Document(words, "text", (Text(words),)) for words in OPENINGS]


class Artist(LogitsProcessor):
    """Makes a random model want to draw or to end now and then, by what it has written."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()
        scores[:, PROCESSOR.vocabulary.dream_start] += 1.5
        scores[:, PROCESSOR.vocabulary.eos] += 0.5
        return scores


def texts(results) -> list[list[str]]:
    """The parts of continuations, an image as "IMAGE", and why they stopped."""
    return [[part.text if isinstance(part, Text) else "IMAGE" for part in one.parts] + [one.stopped] for one in results]


def go(prompts, seeds, sampling=None, **options):
    sampling = sampling or TextSampling(max_new_tokens=10, max_pictures=3)
    return interleave(MODEL, PROCESSOR, prompts, seeds, sampling, QUICK, **options)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3}])
def test_rows_write_and_draw_the_same_alone_and_together(sampling):
    limits = TextSampling(max_new_tokens=14, max_pictures=3, **sampling)
    options = {"logits_processor": LogitsProcessorList([Artist()])}
    prompts, seeds = [*PROMPTS, tiny.story(1), *PROMPTS], range(9)
    together = texts(go(prompts, seeds, limits, **options))
    alone = [texts(go([prompt], [seed], limits, **options))[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together == alone
    if sampling:
        assert len({tuple(one) for one in together}) > 5 and sum(one.count("IMAGE") for one in together) > 5
        assert together[0] != together[5], "the same prompt with another seed"


def test_top_k_of_one_is_greedy_and_a_penalty_is_heard():
    greedy = texts(go(PROMPTS, range(4)))
    assert texts(go(PROMPTS, range(4), TextSampling(1.0, max_new_tokens=10, max_pictures=3, top_k=1))) == greedy
    assert texts(go(PROMPTS, range(4), TextSampling(max_new_tokens=10, repetition_penalty=5.0))) != greedy


def test_arguments_of_generate_are_passed_on():
    free = go(PROMPTS[:1], [0])
    allowed = PROCESSOR.vocabulary.encode("the soup")
    (one,) = go(PROMPTS[:1], [0], prefix_allowed_tokens_fn=lambda row, ids: allowed)
    assert set(one.parts[0].text) <= set("the soup") and texts([one]) != texts(free)


class Fifth(StoppingCriteria):
    """Stops a row after a token of which the number can be divided by five."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_) -> torch.BoolTensor:
        return input_ids[:, -1] % 5 == 0


def test_a_stopping_criterion_ends_its_row_alone():
    sampling = TextSampling(temperature=1.0, max_new_tokens=10, max_pictures=0)
    free, stopped = (texts(go(PROMPTS, range(4), sampling, **more)) for more in ({}, {"stopping_criteria": [Fifth()]}))
    assert {one[-1] for one in stopped} >= {"criteria"}
    for one, other in zip(stopped, free, strict=True):
        if one[-1] == "criteria":
            short, whole = "".join(one[:-1]), "".join(other[:-1])
            assert whole.startswith(short) and len(short) < len(whole)
        else:
            assert one == other


def test_a_streamer_prints_the_text_as_it_is_written(capsys):
    (result,) = go(PROMPTS[:1], [0], streamer=TextStreamer(PROCESSOR.tokenizer, True, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == result.parts[0].text
    with pytest.raises(SamplingProblem, match="a streamer follows one prompt, not 2"):
        go(PROMPTS[:2], [0, 1], streamer=TextStreamer(PROCESSOR.tokenizer))


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("max_length", "max_new_tokens of TextSampling"),
        ("num_beams", "one continuation"),
        ("min_new_tokens", "padding"),
        ("stop_strings", "StopStringCriteria"),
    ],
)
def test_arguments_that_would_not_be_heard_are_refused(option, instead):
    with pytest.raises(SamplingProblem, match=f"interleave takes no {option}: .*{instead}"):
        go(PROMPTS[:1], [0], **{option: 4})


def test_generate_itself_refuses_to_draw():
    """transformers' `generate` writes text alone, and says where images are generated."""
    inputs = PROCESSOR.prompts(PROMPTS)
    always = LogitsProcessorList([Artist(), _Draws()])
    with pytest.raises(ValueError, match="interleave"):
        MODEL.generate(**inputs, max_new_tokens=3, logits_processor=always)


class _Draws(LogitsProcessor):
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores[:, PROCESSOR.vocabulary.dream_start] = 1e4
        return scores


def test_images_and_text_alternate_in_every_row():
    results = go(PROMPTS, range(4), logits_processor=LogitsProcessorList([_Draws()]))
    assert [[type(part) for part in one.parts] for one in results] == [[Picture] * 3] * 4
    assert {one.stopped for one in results} == {"pictures"}
