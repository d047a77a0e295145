"""Transformers' `generate` for DreamLLM: it reads pictures, and stops where the model wants to draw."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessorList

from dreamllm.model.packed import find_slots


class PictureDue(ValueError):
    """The model has written <dream_start> where only text can be generated."""


class TextOnly(LogitsProcessor):
    """Passes logits on; raises PictureDue after <dream_start>, where queries and a picture would have to follow."""

    def __init__(self, dream_start: int) -> None:
        self.dream_start = dream_start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The logits (B, V), unchanged."""
        rows = (input_ids[:, -1] == self.dream_start).nonzero().flatten().tolist()
        if rows:
            raise PictureDue(
                f"row {rows[0]}: the model wrote <dream_start>, a picture is due, and text after it would be "
                "meaningless; use dreamllm.model.generate.interleave, which draws it, or generate.write, or pass "
                f"suppress_tokens=[{self.dream_start}] or the token as one of eos_token_id"
            )
        return scores


class TextGenerationMixin(GenerationMixin):
    """What `generate` of transformers needs to know of pictures in prompts."""

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration: bool = False, **kwargs: Any):
        """As in transformers; pictures are passed with the prompt only, later steps have them in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "read_pixels", "read_slots", "draw_slots"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any):
        """As in transformers, for beams and several sequences; updates the row numbers in the slots."""
        if kwargs.get("pixel_values") is not None:  # several of a row would not stay together
            kwargs["read_pixels"] = kwargs.pop("pixel_values")
            start, patch = self.config.im_start_token_id, self.config.im_patch_token_id
            kwargs["read_slots"] = find_slots(kwargs["input_ids"], start, patch)
        slots = {name: kwargs.pop(name) for name in ("read_slots", "draw_slots") if kwargs.get(name) is not None}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, **kwargs)  # repeats read_pixels too
        for name, slot in slots.items():
            rows = slot[:, :1] * expand_size + torch.arange(expand_size, device=slot.device)  # (N, expand_size)
            positions = slot[:, 1:].expand(-1, expand_size)
            kwargs[name] = torch.stack([rows, positions], dim=-1).flatten(0, 1)
        return input_ids, kwargs

    def _get_logits_processor(self, generation_config: GenerationConfig, **kwargs: Any) -> LogitsProcessorList:
        """As in transformers, with an error after <dream_start>, unless it ends a text."""
        processors = super()._get_logits_processor(generation_config, **kwargs)
        start, ends = self.config.dream_start_token_id, generation_config.eos_token_id
        if start is not None and start not in (ends if isinstance(ends, list) else [ends]):
            processors.insert(0, TextOnly(start))
        return processors
