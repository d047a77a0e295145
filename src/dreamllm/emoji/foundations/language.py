"""Trains the mini LLaMA: transformers' `LlamaForCausalLM` on the text-only corpus of the emoji world."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dreamllm.config.foundations import LanguageModelRecipe
from dreamllm.data.document import Document, Text
from dreamllm.emoji import corpus
from dreamllm.emoji.foundations.text import llama_tokenizer
from dreamllm.emoji.scenes import NAMES, Names
from dreamllm.model.precision import default_device
from dreamllm.train.optimise import half_precision, optimise


def sentences(count: int, seed: int, names: Names = NAMES) -> Iterator[str]:
    """Text of the corpus to train the tokenizer on, with the words of the conversation template."""
    rng = random.Random(seed)
    for i in range(count):
        for part in corpus.sample(str(i), rng, names).parts:
            assert isinstance(part, Text)
            yield f"USER: {part.text}" if part.role == "user" else f"ASSISTANT: {part.text}"


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Tokens and labels of a document, with user text masked; the template is LLaVA's without the system sentence."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for part in document.parts:
        assert isinstance(part, Text)
        text = f"USER: {part.text} ASSISTANT:" if part.role == "user" else part.text
        pieces = tokenizer(text, add_special_tokens=False).input_ids
        if part.role != "user":
            pieces.append(tokenizer.eos_token_id)
        ids += pieces
        labels += [-100] * len(pieces) if part.role == "user" else pieces
    return ids, labels


def train(
    recipe: LanguageModelRecipe, seed: int, names: Names = NAMES
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Next-token prediction on documents sampled during training; no loss on the user's turns."""
    torch.manual_seed(seed)
    tokenizer = llama_tokenizer(sentences(4000, seed, names), recipe.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=11 * recipe.hidden // 4,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        initializer_range=0.04,  # 0.02 is for widths in the thousands, and trains slowly here
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )
    device = default_device()
    model = LlamaForCausalLM(config).to(device).train()
    rng = random.Random(seed)

    def loss_of_step(step: int) -> torch.Tensor:
        rows = [encode(corpus.sample("", rng, names), tokenizer) for _ in range(recipe.batch_size)]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows]).to(device)  # (B, T)
        labels = torch.tensor([row + [-100] * (length - len(row)) for _, row in rows]).to(device)
        with half_precision():
            hidden = model.model(ids).last_hidden_state[:, :-1]  # (B, T - 1, D)
            targets = labels[:, 1:]
            logits = model.lm_head(hidden[targets != -100])
        return F.cross_entropy(logits.float(), targets[targets != -100])

    optimise("llm", list(model.parameters()), loss_of_step, recipe.steps, recipe.learning_rate)
    return model.eval(), tokenizer
