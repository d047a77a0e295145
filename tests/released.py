"""Writes a tiny random checkpoint in the layout of the authors' releases, with its CLIP and Stable Diffusion.

released.write(folder)    folder/dreamllm, folder/clip, folder/sd
"""

from __future__ import annotations

import dreamllm  # noqa: F401  before transformers

# isort: split
import io
import json
import shutil
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch

import tiny
from dreamllm.model.build import build_from_foundations
from dreamllm.model.processor import SPECIAL_TOKENS
from dreamllm.official.exporter import export_official
from dreamllm.train import checkpoint

IDS = dict(zip(reversed(SPECIAL_TOKENS), range(320, 328), strict=True))  # in another order than ours
OPTIONS = {"num_dream_queries": 4, "template": "vicuna_v1.1", "vision_feature_layer": -2, "seed": 0}


@lru_cache
def tokenizer_model() -> bytes:
    """A sentencepiece model of 320 pieces, of which 256 are bytes, with LLaMA's <unk> <s> </s>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.WORDS.splitlines()),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()


def write(folder: Path, context: int = 256) -> Path:
    """Write the checkpoint by our own exporter; every parameter is random, norms and biases too."""
    parts = folder / "parts"
    config = tiny.llm_config(vocab_size=328, num_key_value_heads=4, max_position_embeddings=context)
    tiny.foundations(parts, llm=config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (parts / "llm" / name).unlink()
    (parts / "llm/tokenizer.model").write_bytes(tokenizer_model())
    special = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    pieces = {0: "<unk>", 1: "<s>", 2: "</s>", **{id_: token for token, id_ in IDS.items()}}
    about = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "[PAD]",
        "added_tokens_decoder": {str(id_): {"content": token, **special} for id_, token in pieces.items()},
    }
    (parts / "llm/tokenizer_config.json").write_text(json.dumps(about))
    model, _ = build_from_foundations(parts / "llm", parts / "clip", parts / "sd", **OPTIONS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.language_model.save_pretrained(parts / "llm")
    clip, sd = folder / "clip", folder / "sd"
    shutil.copytree(parts / "clip", clip)
    shutil.copytree(parts / "sd", sd)
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("language_model.")}
    model_of = {"foundations": checkpoint.foundation_digests(parts), "model": OPTIONS}
    checkpoint.save_trained(parts / "checkpoint", trained, model_of, "step\n")
    export_official(parts, [parts / "checkpoint"], folder / "dreamllm", clip="clip", sd="sd")
    return folder
