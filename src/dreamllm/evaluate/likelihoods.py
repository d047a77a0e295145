"""Log-likelihoods of answer options under a causal language model, as in the official code (`language_eval`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dreamllm.data.document import Document
from dreamllm.data.layout import TEMPLATES, Vocabulary, lay_out_prompt
from dreamllm.evaluate.job import PredictionJob, record
from dreamllm.evaluate.prompts import PromptSet, as_text


def language_model(job: PredictionJob) -> tuple[Any, Vocabulary, int]:
    """The foundation language model of a job, its vocabulary (without pictures) and its context."""
    import torch
    from transformers import AutoModelForCausalLM

    from dreamllm.model import precision
    from dreamllm.model.build import first_token
    from dreamllm.model.chat_template import TOKENIZER, layout_template, with_pictures
    from dreamllm.model.weights import load_tokenizer, load_weights

    folder = job.foundations / "llm"
    model = load_weights(AutoModelForCausalLM, folder, dtype=torch.float32)
    precision.for_inference(model, precision.default_device(), job.dtype)
    tokenizer = load_tokenizer(folder)
    eos, template = tokenizer.eos_token_id, job.experiment.model.template
    chat = layout_template(tokenizer, with_pictures(tokenizer)) if template == TOKENIZER else None
    vocabulary = Vocabulary(
        encode=lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids,
        bos=tokenizer.convert_tokens_to_ids(first_token(tokenizer, model.config)),
        eos=eos,
        pad=eos,
        im_patch=-1,
        im_start=-1,
        im_end=-1,
        dream_start=-1,
        dream_end=-1,
        num_patches=0,
        num_queries=0,
        template=TEMPLATES.get(template, TEMPLATES["plain"]),
        chat=chat,
    )
    return model, vocabulary, getattr(model.config, "max_position_embeddings", 2048)


def choose(
    job: PredictionJob,
    model: Any,
    vocabulary: Vocabulary,
    context: int,
    items: Sequence[Any],
    choices: Callable[[Any, PromptSet], tuple[Document, list[Document]]],
) -> list[dict[str, Any]]:
    """Records with the log-likelihood of each option after its question.

    context: longest row in tokens.  choices: an item's question, and the same with each of its options as the answer
    Official prompts go without <s>, as in the official code. Raises NonFiniteValues for a likelihood that is NaN.
    """
    import torch

    from dreamllm.model.finite import check_finite

    settings = job.settings
    skipped = 1 if settings.prompts == "official" and vocabulary.chat is None else 0

    def choose_batch(batch: Sequence[Any]) -> list[dict[str, Any]]:
        records = []
        rows: list[tuple[list[int], int]] = []
        for item in batch:
            question, answered = choices(item, settings.prompts)
            asked = lay_out_prompt(question, vocabulary, "comprehension", context).input_ids[skipped:]
            for option in answered:
                ids = lay_out_prompt(option, vocabulary, "comprehension", context).input_ids[skipped:]
                shared = (i for i, (a, b) in enumerate(zip(asked, ids, strict=False)) if a != b)
                rows.append((list(ids), next(shared, min(len(asked), len(ids)))))
        values = iter(loglikelihoods(model, rows, vocabulary.pad))
        for item in batch:
            prompt = as_text(choices(item, settings.prompts)[0])
            numbers = [next(values) for _ in item.options]
            check_finite(torch.tensor([numbers]), [item.id], "log-likelihoods")
            options = {"options": list(item.options), "loglikelihoods": numbers}
            records.append(record(item.id, prompt, settings.seed) | options)
        return records

    return job.in_batches("language", items, settings.text.batch_size, choose_batch)


def loglikelihoods(model: Any, rows: Sequence[tuple[list[int], int]], pad: int) -> list[float]:
    """Summed log-likelihoods of the ends of some token rows under a causal language model.

    rows: (token ids, index of the first token that counts). Raises ValueError for a row without a token that counts.
    """
    import torch

    if any(start >= len(ids) or start < 1 for ids, start in rows):
        raise ValueError("an option adds no token to its question")
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows])  # (B, T)
    with torch.inference_mode():
        logits = model(input_ids=tokens.to(model.device)).logits.float().cpu()  # (B, T, V)
    gained = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]  # (B, T - 1)
    return [float(gained[row, start - 1 : len(ids) - 1].sum()) for row, (ids, start) in enumerate(rows)]
