"""Attention: where the denoiser attends to each dream query as it draws the first prompts of `draw` (paper Figure 6).

An image is drawn as always. At every step each cross-attention layer divides the attention of every place of a latent
among the queries; the shares are averaged over heads, layers and steps, coarse layers interpolated to the latent.

    NAME.safetensors   maps (N, Q, h, w) and pictures (N, H, W, 3), header and records as in every prediction file

The paper shows the maps of two prompts. `score` measures all prompts: is the map of a query more similar to its own
maps under other prompts than to the maps of other queries there?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamllm.config.evaluation import Drawing as DrawingSettings
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.evaluate import drawing
from dreamllm.evaluate.job import PredictionJob, ScoringJob, record
from dreamllm.evaluate.predictions import Predictions, write_tensors
from dreamllm.evaluate.tasks import draw
from dreamllm.evaluate.tasks.draw import DrawItem

if TYPE_CHECKING:
    import torch

    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor

TASK = replace(
    draw.TASK,
    predictions="safetensors",
    settings=("drawing", "attention"),
    foundations=(),
    instruments=(),
    image_metrics=False,
    parallel=False,
)
read = draw.read


def limit(settings: EvaluationSettings) -> int | None:
    """Number of prompts."""
    return settings.attention.prompts


def predict(job: PredictionJob, items: Sequence[DrawItem], header: dict[str, Any]) -> None:
    """Write the maps and images of the prompts. Raises DecoderProblem for a decoder without cross-attention."""
    model, processor = job.load(compiled=False)  # hooks read the attention of every block
    header["protocol"]["layers"] = list(model.decoder.cross_attention(model.denoiser))
    requests = drawing.plan(items, job.settings.seed, 0)
    tensors = measure(model, processor, requests, job.settings.drawing)
    write_tensors(
        job.out, header, [record(request.item.id, request.prompt, request.seed) for request in requests], tensors
    )


def score(job: ScoringJob, items: Sequence[DrawItem], predictions: Predictions) -> dict[str, Any]:
    """Correlations between maps of different prompts: of the same query, of different ones, and the difference."""
    from dreamllm.evaluate.metrics import attention_maps

    return attention_maps.score(predictions.tensor("maps"))


def measure(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    requests: Sequence[drawing.DrawRequest],
    settings: DrawingSettings,
) -> dict[str, torch.Tensor]:
    """maps (N, Q, h, w), whose sum over queries is 1 everywhere, and the pictures (N, H, W, 3) of the prompts."""
    import torch

    from dreamllm.model.finite import check_finite
    from dreamllm.model.sampling import check_fit

    _, size = check_fit(model, drawing.picture_sampling(settings))
    maps, pictures = [], []
    batches = [requests[i : i + settings.batch_size] for i in range(0, len(requests), settings.batch_size)]
    for batch in batches:
        with record_attention(model, len(batch), size) as calls:
            for _, picture in drawing.draw(model, processor, batch, settings):
                pictures.append(torch.from_numpy(np.array(picture)))
        maps.append(torch.stack(calls).mean(dim=0))
        check_finite(maps[-1], [one.item.id for one in batch], "attention maps")
    return {"maps": torch.cat(maps).contiguous(), "pictures": torch.stack(pictures)}


@contextmanager
def record_attention(
    model: DreamLLMForConditionalGeneration, pictures: int, size: tuple[int, int]
) -> Iterator[list[torch.Tensor]]:
    """A list to which every call of a cross-attention layer adds its maps (pictures, Q, *size).

    With guidance a call is for the null conditions and then the pictures'; the last ones count.
    Raises DecoderProblem for a decoder without cross-attention.
    """
    import torch

    calls: list[torch.Tensor] = []

    def record(layer: Any, arguments: tuple, options: dict[str, Any]) -> None:
        query, key = layer.to_q(arguments[0]), layer.to_k(options["encoder_hidden_states"])
        query, key = (norm(x) if norm else x for norm, x in ((layer.norm_q, query), (layer.norm_k, key)))
        query = layer.head_to_batch_dim(query).float()  # bf16 shares would not sum to 1
        key = layer.head_to_batch_dim(key).float()
        shares = layer.get_attention_scores(query, key)  # (B * heads, h * w, Q)
        shares = shares.float().unflatten(0, (-1, layer.heads)).mean(dim=1)[-pictures:]  # (M, h * w, Q)
        places = shares.shape[1]
        divisors = [rows for rows in range(1, places + 1) if places % rows == 0]
        rows = min(divisors, key=lambda rows: abs(rows / (places / rows) - size[0] / size[1]))
        maps = shares.transpose(1, 2).unflatten(2, (rows, -1))
        maps = torch.nn.functional.interpolate(maps, size=size, mode="bilinear")
        calls.append(maps.cpu())

    layers = model.decoder.cross_attention(model.denoiser).values()
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
