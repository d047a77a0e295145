"""Named seeds: every use of random numbers has a name, and its seed is a function of that name.

    torch.Generator().manual_seed(seed_of(config.seed, "diffusion noise", step))

So no random state has to be passed on, saved, or synchronised between processes.
"""

from __future__ import annotations

import hashlib


def seed_of(*names: int | str) -> int:
    """A seed in 0 .. 2**63 - 1 for a name. It is the same on every machine and Python version."""
    digest = hashlib.sha256("/".join(map(repr, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
