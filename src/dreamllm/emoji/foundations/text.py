"""Tokenizers of the mini foundations: BPE with `▁` pieces and byte fallback, trained on the emoji world."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dreamllm.config.world import AltText
from dreamllm.emoji.registers import ALT_TEXT, describe
from dreamllm.emoji.scenes import NAMES, Names, sample_split


def llama_tokenizer(sentences: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer like LLaMA's: `<unk>` 0, `<s>` 1, `</s>` 2, `<s>` is prepended, byte fallback encodes any text."""
    tokenizer = _byte_fallback_bpe(sentences, vocabulary, ["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def clip_tokenizer(sentences: Iterable[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer like CLIP's: text between `<|startoftext|>` and `<|endoftext|>`, padded with the latter."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = _byte_fallback_bpe(sentences, vocabulary, special)
    start, end = special
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 0), (end, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=end,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def caption_tokenizer(
    length: int, seed: int, names: Names = NAMES, forms: Mapping[AltText, float] = ALT_TEXT
) -> PreTrainedTokenizerFast:
    """The tokenizer of the mini CLIP's text tower, which also conditions Stable Diffusion; trained on alt texts."""
    rng = random.Random(seed)
    sentences = [describe(sample_split(rng, "train", names=names), "alt_text", rng, forms) for _ in range(15000)]
    return clip_tokenizer(sentences, vocabulary=400, length=length)


def _byte_fallback_bpe(sentences: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """BPE trained to `vocabulary` pieces, plus one for each byte; words and punctuation are never merged."""
    learner = Tokenizer(models.BPE(unk_token=special[0]))
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    learner.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    # Trainers can add bytes only as special tokens, which decoding would drop, so they are added here.
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(learnt["vocab"], key=learnt["vocab"].get)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token=special[0],
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
