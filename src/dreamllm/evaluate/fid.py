"""Frechet distance between drawn and real pictures.

Features go through clean-fid's loop and its antialiased resizer; the feature extractor is the CLIP vision tower of the
foundations (image embeddings, not normalised, as in clean-fid's own CLIP variant). So the numbers do not compare with
FIDs on Inception features, the paper's among them. The distance itself is computed here in float64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamllm.evaluate.intervals import bootstrap, measurement


def clip_features(pictures: Iterable[Image.Image], clip_dir: Path, batch_size: int = 64) -> np.ndarray:
    """CLIP image embeddings (N, D) in float64 of RGB pictures of any size."""
    import torch
    from cleanfid.fid import get_files_features
    from cleanfid.resize import make_resizer
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(clip_dir, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(clip_dir, backend="pil")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    side = model.config.image_size

    def embed(pixels: torch.Tensor) -> torch.Tensor:  # (B, 3, side, side) in 0..255 -> (B, D)
        return model(pixel_values=(pixels / 255 - mean) / std).image_embeds

    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, picture in enumerate(pictures):
            paths.append(f"{folder}/{number:06d}.png")
            picture.save(paths[-1])
        resize = make_resizer("PIL", False, "bicubic", (side, side))
        options = {"batch_size": batch_size, "num_workers": 0, "device": torch.device("cpu"), "verbose": False}
        return get_files_features(paths, embed, custom_fn_resize=resize, **options).astype(np.float64)


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of features (N, D).

    Raises ValueError for fewer than two pictures, which have no covariance, and for features that are not finite.
    """
    if len(features) < 2:
        raise ValueError(f"a Frechet distance needs two pictures or more on each side, there are {len(features)}")
    if not np.isfinite(features).all():
        raise ValueError(f"features of picture {int(np.argwhere(~np.isfinite(features))[0][0])} are not finite")
    features = features.astype(np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    With symmetric eigendecompositions instead of a general matrix root: real for singular covariances too, which those
    of fewer pictures than feature dimensions always are.
    """
    return _distance(mean_1, cov_1, mean_2, cov_2, _root(cov_2))


def score(drawn: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """FID of drawn against real features (N, D), (M, D), with a bootstrap interval over the drawn pictures."""
    mean_real, cov_real = gaussian(real)
    root = _root(cov_real)

    def distance(items: np.ndarray) -> float:
        return _distance(*gaussian(drawn[items]), mean_real, cov_real, root)

    value = distance(np.arange(len(drawn)))
    low, high = bootstrap(distance, len(drawn))
    return measurement(value, len(drawn), max(low, 0.0), high)


def _distance(
    mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray, root_2: np.ndarray
) -> float:
    eigenvalues = np.linalg.eigvalsh(root_2 @ cov_1 @ root_2)  # the same as those of C1 C2
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = mean_1 - mean_2
    return max(float(difference @ difference + np.trace(cov_1) + np.trace(cov_2) - 2 * cross), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semi-definite matrix."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
