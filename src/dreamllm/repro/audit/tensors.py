"""The index of a safetensors file: names and shapes, read from its first bytes, without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from dreamllm.repro.audit.findings import AuditProblem

LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def shapes(path: Path) -> dict[str, list[int]]:
    """Shape of every tensor by name.

    Raises AuditProblem for a file that is cut off, is longer than its index says, or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER
        if length > min(size - 8, LONGEST_HEADER):
            raise AuditProblem("is no whole safetensors file: it ends within its index")
        try:
            index = json.loads(file.read(length))
            tensors = {name: one for name, one in index.items() if name != "__metadata__"}
            end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
            found = {name: list(one["shape"]) for name, one in tensors.items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise AuditProblem(f"is no safetensors file: its index is malformed ({error})") from None
    if 8 + length + end != size:
        raise AuditProblem(f"has {size} bytes, its index says {8 + length + end}")
    return found
