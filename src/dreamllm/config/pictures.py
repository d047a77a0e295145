"""The sections of an experiment file that are about measuring drawn pictures (`experiment.py`, docs/pictures.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Section


class PictureProtocol(Section):
    """Several pictures per prompt, selection among them, FID, CLIP score and their spread over the seeds."""

    samples: Count = 8
    """Pictures per prompt (paper: 8 on COCO). Sample s is drawn from the seed of sample 0 plus s million."""
    features: Literal["inception", "clip"] = "inception"
    """What FID compares. inception: by the paper's protocol and by clean-fid's; clip: embeddings of the CLIP below."""
    inception: str = "data/inception"
    """Folder with the two Inception files that you put there (docs/pictures.md)."""
    clip: str | None = None
    """Folder of the CLIP that scores pictures, both towers (paper: ViT-L/14); null = that of the foundations."""


class Latency(Section):
    """How long one picture takes (paper Table 9b): benchmark `latency`."""

    steps: Annotated[list[Count], Field(min_length=1)] = [50, 100, 150]
    """Numbers of denoising steps (paper: these)."""
    pictures: Count = 10
    """Pictures that are timed for each, one after the other, after one that is not."""


class Attention(Section):
    """Where the UNet attends to each dream query (paper Figure 6): benchmark `attention`."""

    prompts: Annotated[int, Field(ge=2)] = 24
    """The first prompts of the benchmark `draw`, whose maps are stored and compared."""
