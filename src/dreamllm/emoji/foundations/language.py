"""Trains the mini LLaMA or Qwen2 of transformers on the text-only corpus of the emoji world."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from dreamllm.config.foundations import LanguageModelRecipe
from dreamllm.config.world import Registers
from dreamllm.data.document import Document, Text
from dreamllm.emoji import corpus
from dreamllm.emoji.foundations.text import llama_tokenizer
from dreamllm.emoji.scenes import NAMES, Names
from dreamllm.model.precision import default_device
from dreamllm.model.weights import load_tokenizer, load_weights
from dreamllm.train.optimise import half_precision, optimise

LanguageModel: TypeAlias = LlamaForCausalLM | Qwen2ForCausalLM
GROUP = 16  # batches that are sampled together and sorted by length


def sentences(count: int, seed: int, names: Names = NAMES, shares: Registers = corpus.REGISTERS) -> Iterator[str]:
    """Text of the corpus to train the tokenizer on, with the words of the conversation template."""
    rng = random.Random(seed)
    for i in range(count):
        for part in corpus.sample(str(i), rng, names, shares).parts:
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


def untrained(recipe: LanguageModelRecipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LanguageModel:
    """A model of random weights, except that one head of each layer starts with the attention that binding needs.

    To tell which colour belongs to which noun takes a head that attends to the previous token (it brings `red` to
    `cat`) and, in a later layer, one that attends to the same token (from `the cat` of a question to `a red cat`). Such
    pairs (induction heads, Olsson et al. 2022, arXiv 2209.11895) form late or never in the tokens of this corpus. Here
    the first layer starts with a head of the first kind and every later layer with one of the second kind.
    """
    torch.manual_seed(seed)
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden,
        "intermediate_size": 11 * recipe.hidden // 4,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": recipe.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},  # for contexts of hundreds of tokens
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "attn_implementation": "eager",
    }
    model: LanguageModel
    if recipe.architecture == "llama":  # the biases, which Qwen2 has anyway, hold the previous-token head
        model = LlamaForCausalLM(LlamaConfig(**options, attention_bias=True, tie_word_embeddings=False))
    else:
        heads = max(1, recipe.heads // 2)
        model = Qwen2ForCausalLM(Qwen2Config(**options, num_key_value_heads=heads, tie_word_embeddings=True))
    with torch.no_grad():
        # The token itself has to outweigh what the first layers add to it, or the same-token heads do not find it.
        model.model.embed_tokens.weight.mul_(3)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.div_(math.sqrt(2 * recipe.layers))
            layer.mlp.down_proj.weight.div_(math.sqrt(2 * recipe.layers))
        attend_to_previous_token(model.model.layers[0].self_attn, model.model.rotary_emb.inv_freq)
        for layer in model.model.layers[1:]:
            attend_to_same_token(layer.self_attn)
    return model


def attend_to_previous_token(
    attention: LlamaAttention | Qwen2Attention, frequencies: torch.Tensor, logit: float = 16.0
) -> None:
    """Make the first head attend mostly to the token before, where its logit is `logit`.

    Query and key are constants (biases) in the half of the planes that the rotary embedding turns fastest. The key is
    turned ahead by one position, so that both point the same way one token apart.

    frequencies: of the rotary embedding, (head_dim / 2,)
    """
    width = attention.head_dim
    fast = torch.where(torch.arange(width // 2) < width // 4, math.sqrt(4 * logit / math.sqrt(width)), 0)
    for projection, angle in ((attention.q_proj, 0 * frequencies), (attention.k_proj, frequencies)):
        projection.weight[:width] *= 0.1
        projection.bias[:width] = torch.cat([fast * torch.cos(angle), fast * torch.sin(angle)])


def attend_to_same_token(attention: LlamaAttention | Qwen2Attention, logit: float = 8.0) -> None:
    """Make the first head attend to positions of similar hidden states: its logit is about `logit` for equal ones.

    Query and key are the same random projection into the half of the planes that the rotary embedding turns slowest,
    where their distance matters least.
    """
    width, hidden = attention.head_dim, attention.q_proj.in_features
    same = torch.randn(width, hidden) * math.sqrt(2 * logit / (math.sqrt(width) * hidden))
    same[: width // 4] = same[width // 2 : 3 * width // 4] = 0
    attention.q_proj.weight[:width] = attention.k_proj.weight[:width] = same


def batches(
    recipe: LanguageModelRecipe,
    seed: int,
    names: Names,
    tokenizer: PreTrainedTokenizerFast,
    shares: Registers = corpus.REGISTERS,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ids and labels, (B, T) each, of documents of similar length, so that few tokens are padding.

    The first `recipe.first_steps` batches are of `corpus.FIRST_FORMS`.
    """
    rng = random.Random(seed)
    for group in itertools.count():
        forms = corpus.FIRST_FORMS if group * GROUP < recipe.first_steps else corpus.FORMS
        rows = [
            encode(corpus.sample("", rng, names, shares, forms), tokenizer) for _ in range(GROUP * recipe.batch_size)
        ]
        rows.sort(key=lambda row: len(row[0]))
        for batch in rng.sample(range(GROUP), GROUP):
            chosen = rows[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            length = -len(chosen[-1][0]) // 8 * -8  # few different shapes, for which a CPU has to compile its kernels
            ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in chosen])  # (B, T)
            yield ids, torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in chosen])


def train(
    recipe: LanguageModelRecipe,
    seed: int,
    names: Names = NAMES,
    shares: Registers = corpus.REGISTERS,
    start: Path | None = None,
) -> tuple[LanguageModel, PreTrainedTokenizerFast]:
    """Next-token prediction on documents sampled during training; no loss on the user's turns.

    shares: of the registers of language in the corpus.  start: folder of a language model to train further, with its
    tokenizer
    """
    device = default_device()
    if start is None:
        tokenizer = llama_tokenizer(sentences(4000, seed, names, shares), recipe.vocabulary)
        model = untrained(recipe, tokenizer, seed)
    else:
        tokenizer = load_tokenizer(start)
        model = load_weights(AutoModelForCausalLM, start, attn_implementation="eager").float()
    model = model.to(device).train()
    stream = batches(recipe, seed, names, tokenizer, shares)

    def loss_of_step(step: int) -> torch.Tensor:
        ids, labels = (tensor.to(device) for tensor in next(stream))
        with half_precision():
            hidden = model.model(ids).last_hidden_state[:, :-1]  # (B, T - 1, D)
            targets = labels[:, 1:]
            logits = model.lm_head(hidden[targets != -100])
        return F.cross_entropy(logits.float(), targets[targets != -100])

    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    optimise("llm", others, loss_of_step, recipe.steps, recipe.learning_rate, betas=(0.9, 0.95), matrices=matrices)
    return model.eval(), tokenizer
