"""Where the UNet attends to each dream query (paper Figure 6): benchmark `attention`, the first prompts of `draw`.

A picture is drawn as always. At every step each cross-attention layer divides the attention of every place of a latent
among the queries; the shares are averaged over heads, layers and steps, coarse layers interpolated to the latent.

    NAME.safetensors   maps (N, Q, h, w) and pictures (N, H, W, 3), header and records as in every prediction file

The paper shows the maps of two prompts, to be judged by eye. `score` asks the same of all prompts: is a query's map
more like its own maps under other prompts than like other queries' maps there?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamllm.config.evaluation import Drawing as DrawingSettings
from dreamllm.evaluate import drawing
from dreamllm.evaluate.intervals import bootstrap, measurement, undefined
from dreamllm.evaluate.predictions import Predictions

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor


def measure(
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    wanted: Sequence[drawing.Wanted],
    settings: DrawingSettings,
) -> dict[str, torch.Tensor]:
    """maps (N, Q, h, w), whose sum over queries is 1 everywhere, and the pictures (N, H, W, 3) of the prompts."""
    import torch

    side = model.unet.config.sample_size
    maps, pictures = [], []
    batches = [wanted[i : i + settings.batch_size] for i in range(0, len(wanted), settings.batch_size)]
    for batch in batches:
        with recorded(model.unet, len(batch), side) as calls:
            for _, picture in drawing.draw(model, processor, batch, settings):
                pictures.append(torch.from_numpy(np.array(picture)))
        maps.append(torch.stack(calls).mean(dim=0))
    return {"maps": torch.cat(maps).contiguous(), "pictures": torch.stack(pictures)}


@contextmanager
def recorded(unet: UNet2DConditionModel, pictures: int, side: int) -> Iterator[list[torch.Tensor]]:
    """A list to which every call of a cross-attention layer adds its maps (pictures, Q, side, side).

    With guidance a call is for the null conditions and then the pictures'; the last ones count.
    """
    import torch

    calls: list[torch.Tensor] = []

    def record(layer: Any, arguments: tuple, options: dict[str, Any]) -> None:
        query = layer.head_to_batch_dim(layer.to_q(arguments[0]))
        key = layer.head_to_batch_dim(layer.to_k(options["encoder_hidden_states"]))
        shares = layer.get_attention_scores(query, key)  # (B * heads, h * w, Q)
        shares = shares.float().unflatten(0, (-1, layer.heads)).mean(dim=1)[-pictures:]  # (M, h * w, Q)
        edge = round(shares.shape[1] ** 0.5)
        maps = shares.transpose(1, 2).unflatten(2, (edge, edge))
        maps = torch.nn.functional.interpolate(maps, size=(side, side), mode="bilinear")
        calls.append(maps.cpu())

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in cross_attention(unet).values()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def cross_attention(unet: UNet2DConditionModel) -> dict[str, Any]:
    """The layers in which places of the latent attend to conditions, by name."""
    return {name: module for name, module in unet.named_modules() if name.endswith(".attn2")}


def score(predictions: Predictions) -> dict[str, Any]:
    """Mean correlations between maps of different prompts: of the same query, of different ones, and the difference.

    Intervals resample prompts. A map without any difference between places correlates with none.
    """
    maps = predictions.tensor("maps")  # (N, Q, h, w)
    prompts, queries = maps.shape[:2]
    centred = maps.reshape(prompts, queries, -1).astype(np.float64)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=-1, keepdims=True)  # (N, Q, 1)
    if queries < 2 or (lengths == 0).any():
        reason = "there is one query only" if queries < 2 else "a query's map is the same everywhere"
        return {"metrics": dict.fromkeys(("same", "other", "difference"), undefined(reason)), "groups": {}}
    same, other = correlations(centred / lengths)
    pairs = {"same": same, "other": other, "difference": same - other}
    return {"metrics": {name: over_pairs(values) for name, values in pairs.items()}, "groups": {}}


def correlations(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over queries for each pair of prompts, both (N, N): same query, and different queries.

    maps: (N, Q, L), each centred and of length 1
    """
    queries = maps.shape[1]
    same = np.einsum("aql,bql->ab", maps, maps) / queries
    sums = maps.sum(axis=1)  # (N, L)
    return same, (sums @ sums.T - same * queries) / (queries * (queries - 1))


def over_pairs(values: np.ndarray) -> dict[str, Any]:
    """Mean over pairs of different prompts of a symmetric (N, N) array, with an interval over prompts."""

    def mean(prompts: np.ndarray) -> float:
        different = prompts[:, None] != prompts  # a prompt that was drawn twice is no pair with itself
        chosen = values[np.ix_(prompts, prompts)]
        return float(chosen[different].mean()) if different.any() else float(values.mean())

    n = len(values)
    return measurement(mean(np.arange(n)), n, *bootstrap(mean, n))
