"""The foundation language model: its first weights, its batches, and the figures of its gate."""

from __future__ import annotations

import random
import re

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from dreamllm.config.foundations import LanguageModelRecipe
from dreamllm.emoji.foundations import gates, language, language_figures, text
from dreamllm.emoji.scenes import NAMES

RECIPE = LanguageModelRecipe(steps=32, batch_size=8, learning_rate=4e-3, hidden=64, layers=2, heads=2, first_steps=16)


@pytest.fixture(scope="module")
def tokenizer():
    return text.llama_tokenizer(language.sentences(4000, seed=0), vocabulary=600)


def attentions(model: LlamaForCausalLM, tokenizer, words: str) -> tuple[torch.Tensor, ...]:
    """Attention of every layer before training, (1, heads, T, T) each."""
    return model(tokenizer(words, return_tensors="pt").input_ids, output_attentions=True).attentions


def test_the_first_head_of_the_first_layer_starts_at_the_previous_token(tokenizer):
    model = language.untrained(RECIPE.model_copy(update={"hidden": 128}), tokenizer, seed=0)
    attention = attentions(model, tokenizer, "a red cat left of a blue car on sand.")[0][0]
    mean = attention.diagonal(-1, 1, 2).mean(-1)
    assert mean[0] > 0.5 and mean[0] > 2 * mean[1]


def test_the_first_head_of_later_layers_starts_at_the_same_token(tokenizer):
    model = language.untrained(RECIPE.model_copy(update={"hidden": 256, "heads": 4}), tokenizer, seed=0)
    words = "a red cat left of a blue car on sand. what colour is the cat"
    ids = tokenizer(words).input_ids
    asked, told = len(ids) - 1, ids.index(ids[-1])
    attention = attentions(model, tokenizer, words)[1][0, :, asked]
    others = [position for position in range(asked) if position != told]
    assert attention[0, told] > 5 * attention[0, others].mean()
    assert attention[0, told] > 2 * attention[1:, told].max()


def test_the_same_seed_gives_the_same_weights_and_batches(tokenizer):
    one, two = (language.untrained(RECIPE, tokenizer, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, again = (next(language.batches(RECIPE, 3, NAMES, tokenizer)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_the_first_batches_ask_for_colours_alone_and_later_ones_for_all(tokenizer):
    stream = language.batches(RECIPE, 0, NAMES, tokenizer)
    read = [" ".join(tokenizer.batch_decode(next(stream)[0])) for _ in range(2 * language.GROUP)]
    first, later = (
        set(re.findall("(what colour|what is|is the|is there|how many)[^?.]*[?]", " ".join(part)))
        for part in (read[: language.GROUP], read[language.GROUP :])
    )
    assert first == {"what colour"}
    assert later > first


def test_batches_hold_little_padding(tokenizer):
    stream = language.batches(RECIPE, 0, NAMES, tokenizer)
    batches = [next(stream) for _ in range(2 * language.GROUP)]
    padding = sum(int((ids == 0).sum()) for ids, _ in batches) / sum(ids.numel() for ids, _ in batches)
    assert padding < 0.15
    assert all(bool((labels[ids == 0] == -100).all()) for ids, labels in batches)


def test_training_lowers_the_loss_of_unseen_documents(tokenizer):
    model, learnt = language.train(RECIPE, 0)
    stream = language.batches(RECIPE.model_copy(update={"first_steps": 0}), 9, NAMES, learnt)
    ids, labels = next(stream)
    with torch.no_grad():
        after = model(ids, labels=labels).loss
        before = language.untrained(RECIPE, learnt, seed=0)(ids, labels=labels).loss
    assert after < 0.8 * before


class Oracle(torch.nn.Module):
    """Gives the logits of the right next tokens, except that it confuses one token with another."""

    device = torch.device("cpu")

    def __init__(self, size: int, instead: dict[int, int]):
        super().__init__()
        self.size, self.instead = size, instead

    def forward(self, ids: torch.Tensor) -> CausalLMOutput:
        following = torch.roll(ids, -1, 1)
        for right, wrong in self.instead.items():
            following = torch.where(following == right, wrong, following)
        return CausalLMOutput(logits=torch.nn.functional.one_hot(following, self.size).float())


def test_the_figures_of_a_model_that_is_always_right_are_one(tokenizer):
    figures = language_figures.figures(Oracle(len(tokenizer), {}), tokenizer, count=12)
    assert figures.keys() >= gates.GATES["llm"].keys()
    assert figures.pop("examples_gain") == 0
    assert set(figures.values()) == {1.0}


def test_a_model_that_never_says_no_fails_half_of_the_yes_no_questions_alone(tokenizer):
    yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
    figures = language_figures.figures(Oracle(len(tokenizer), {no: yes}), tokenizer, count=60)
    for setting in ("caption", "human", "narrative", "examples"):
        assert figures[f"{setting}_colour"] == figures[f"{setting}_relation"] == 1
        assert 0.3 < figures[f"{setting}_presence_coloured"] < 0.7
        assert 0.3 < figures[f"{setting}_relation_yes_no"] < 0.7


def test_an_answer_that_does_not_end_is_wrong(tokenizer):
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    figures = language_figures.figures(Oracle(len(tokenizer), {tokenizer.eos_token_id: comma}), tokenizer, count=4)
    assert set(figures.values()) == {0.0}


@pytest.mark.parametrize("kind", language_figures.KINDS)
def test_questions_of_the_gate_are_about_unseen_pairs_and_have_nothing_among_their_answers(kind):
    rng = random.Random(0)
    turns = [language_figures.turn(kind, "caption", rng) for _ in range(120)]
    answers = {answer for _, answer in turns}
    assert len({words for words, _ in turns}) > 100
    assert ("nothing" in answers) == (kind == "relation")
    assert len(answers) == 2 if kind in ("presence_coloured", "relation_yes_no") else len(answers) >= 6
