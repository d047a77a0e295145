"""The alignment loss as pure functions: regresses the UNet's conditions onto CLIP features of the picture to draw.

The paper compares with such a loss (Table 3, last row), and with models that train on it instead of the diffusion loss,
GILL and Emu (Figure 1); neither the paper nor the official code defines it. This one is Emu's squared error of image
embeddings (arXiv 2307.05222), on the embeddings of Emu2: CLIP's patch features averaged to a small grid (arXiv
2312.13286), one target for each dream query. GILL's loss, on the text encoder's states of the caption (arXiv
2305.17216), needs a caption for each picture, which interleaved documents do not have.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def grid_shape(number: int) -> tuple[int, int]:
    """Rows and columns of the grid of `number` cells closest to a square: 64 is 8 x 8, 32 is 4 x 8, a prime one row."""
    rows = max(divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0)
    return rows, number // rows


def alignment_targets(features: torch.Tensor, num_queries: int) -> torch.Tensor:
    """Targets for the conditions of M pictures: CLIP's patch features, averaged to one vector per dream query.

    Each vector is normalised to mean 0 and variance 1 (a layer norm without weights), so that conditions of 0 have a
    loss of 1 for any CLIP, and a loss weight means the same for all of them.

    features (M, P, Dv) of square pictures in raster order -> (M, Q, Dv) in fp32, in raster order
    """
    side = math.isqrt(features.shape[1])
    patches = features.float().transpose(1, 2).unflatten(2, (side, side))  # (M, Dv, side, side)
    pooled = F.adaptive_avg_pool2d(patches, grid_shape(num_queries)).flatten(2).transpose(1, 2)  # (M, Q, Dv)
    return F.layer_norm(pooled, pooled.shape[2:])
