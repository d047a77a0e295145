"""Named seeds: every random choice of the project has a name, and its seed is a function of that name alone.

    torch.Generator().manual_seed(seed_of(config.seed, "diffusion noise", step))

So no random state has to be carried along, saved or kept in step between processes.
"""

from __future__ import annotations

import hashlib


def seed_of(*names: int | str) -> int:
    """The seed of a name, in 0 .. 2**63 - 1. Equal names give equal seeds on every machine and Python version."""
    digest = hashlib.sha256("/".join(map(repr, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
