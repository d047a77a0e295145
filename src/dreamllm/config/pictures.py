"""The sections of an experiment file about measurements on generated pictures (`experiment.py`, docs/pictures.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Path, Section, Share, Unique


class PictureProtocol(Section):
    """FID and CLIP score of several pictures per prompt, of the best of them, and their spread over seeds."""

    samples: Count = 8
    """Pictures per prompt (paper: 8 on COCO). The seed of sample s is that of sample 0 plus s million."""
    features: Literal["inception", "clip"] = "inception"
    """Features of FID. inception: by the paper's protocol and by clean-fid's; clip: embeddings of the CLIP below."""
    inception: str = "data/inception"
    """Folder with the two Inception files, which you have to put there (docs/pictures.md)."""
    clip: Path | None = None
    """Folder of the CLIP for the CLIP score (paper: ViT-L/14); null = that of the foundations."""


class Detection(Section):
    """The object detector that scores the images of the task geneval (docs/pictures.md)."""

    detector: Path
    """Folder of an object detector in transformers' layout: Mask2Former (GenEval's own), OWLv2, Grounding DINO, DETR
    and others. Nothing is downloaded."""
    clip: Path | None = None
    """Folder of the CLIP that tells colours (GenEval: ViT-L/14); null = that of the foundations."""
    threshold: Share = 0.3
    """Score above which an object counts (GenEval: 0.3, chosen for its Mask2Former; other detectors need another)."""
    counting_threshold: Share = 0.9
    """The same for prompts with the tag counting (GenEval: 0.9)."""


class Latency(Section):
    """Time to generate one picture (paper Table 9b): benchmark `latency`."""

    steps: Annotated[list[Count], Field(min_length=1), Unique] = [50, 100, 150]
    """Numbers of denoising steps (paper: 50, 100, 150)."""
    pictures: Count = 10
    """Pictures timed for each, one after the other, after a warm-up picture."""


class Attention(Section):
    """Attention maps of the UNet for each dream query (paper Figure 6): benchmark `attention`."""

    prompts: Annotated[int, Field(ge=2)] = 24
    """Number of prompts, the first ones of the benchmark `draw`, whose maps are stored and compared."""
