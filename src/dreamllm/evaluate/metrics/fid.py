"""Frechet distance between drawn and real pictures (FID, arXiv 1706.08500), in float64, from features of any network.

Which network, and how pictures are resized for it, is `features.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamllm.evaluate.metrics.intervals import Z, measurement, undefined


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

    With symmetric eigendecompositions instead of a general matrix root: real for singular covariances too.
    Raises ValueError for Gaussians of different dimensions.
    """
    if mean_1.shape != mean_2.shape:
        raise ValueError(f"features of {mean_1.size} and of {mean_2.size} dimensions cannot be compared")
    root = _root(cov_2)
    eigenvalues = np.linalg.eigvalsh(root @ cov_1 @ root)  # the same as those of C1 C2
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = mean_1 - mean_2
    return max(float(difference @ difference + np.trace(cov_1) + np.trace(cov_2) - 2 * cross), 0.0)


def score(drawn: np.ndarray, mean_real: np.ndarray, cov_real: np.ndarray, n_real: int) -> dict[str, Any]:
    """FID of drawn features (N, D) against mean (D,) and covariance (D, D) of n_real pictures, with a 95 % interval.

    Undefined, with the reason, for fewer pictures than D on either side: their covariance is singular, and the value
    would tell more of their number than of the pictures. Raises ValueError as `gaussian` and `frechet_distance` do.
    """
    mean, covariance = gaussian(drawn)
    value = frechet_distance(mean, covariance, mean_real, cov_real)
    few, dimensions = min(len(drawn), n_real), len(mean)
    if few < dimensions:
        return undefined(f"{few} pictures are fewer than the {dimensions} dimensions of their features")
    half = Z * standard_error(drawn, mean, covariance, mean_real, cov_real)
    return measurement(value, len(drawn), max(value - half, 0.0), value + half)


def standard_error(
    drawn: np.ndarray, mean: np.ndarray, covariance: np.ndarray, mean_real: np.ndarray, cov_real: np.ndarray
) -> float:
    """Standard error of the distance over the choice of drawn pictures, by its derivative (infinitesimal jackknife).

    The derivative by the mean is 2 (m1 - m2), by the covariance 1 - T, where T = R (R C1 R)^(-1/2) R with R = C2^(1/2)
    takes the first Gaussian to the second. As exact as a bootstrap, for the price of one more decomposition.
    """
    root = _root(cov_real)
    eigenvalues, vectors = np.linalg.eigh(root @ covariance @ root)
    kept = eigenvalues > eigenvalues.max(initial=0) * len(mean) * np.finfo(np.float64).eps
    half = root @ vectors[:, kept]
    slope = np.eye(len(mean)) - (half / np.sqrt(eigenvalues[kept])) @ half.T
    centred = drawn.astype(np.float64) - mean
    influence = 2 * centred @ (mean - mean_real) + ((centred @ slope) * centred).sum(axis=1)
    return float(influence.std(ddof=1) / np.sqrt(len(drawn)))


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semi-definite matrix."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
