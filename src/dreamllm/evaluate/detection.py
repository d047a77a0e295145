"""Object detectors of transformers, and CLIP as a judge of colours, for the benchmark `geneval`. Nothing is downloaded.

    universal segmentation    Mask2Former and others with masks; GenEval's own detector is a Mask2Former on COCO
    zero-shot detection       OWL-ViT, OWLv2, Grounding DINO, OmDet: asked for the names of a prompt, one by one
    object detection          DETR and others of a fixed list of classes

A detector is told by its config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    pipeline,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
)

from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.metrics.object_checks import Found
from dreamllm.evaluate.networks import Clip
from dreamllm.evaluate.tasks.geneval import COLOURS
from dreamllm.model.precision import default_device
from dreamllm.model.weights import load_part, load_weights

BACKGROUND = (153, 153, 153)  # around an object whose colour is asked for (GenEval: #999)
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
QUERIES = {
    **dict.fromkeys(("owlvit", "owlv2"), "a photo of a {}"),
    **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), "{}."),
}
"""How a detector is asked for a name, by its kind, as its documentation does; the name alone where it says nothing."""
OTHER_NAMES = {
    "computer mouse": ("mouse",),
    "tv remote": ("remote",),
    "computer keyboard": ("keyboard",),
    "airplane": ("aeroplane",),
    "motorcycle": ("motorbike",),
    "couch": ("sofa",),
    "potted plant": ("pottedplant",),
    "dining table": ("diningtable",),
    "tv": ("tvmonitor",),
    "hair drier": ("hair dryer",),
}
"""What COCO's detectors call classes that GenEval names otherwise."""


class Detector:
    """An object detector in transformers' layout, from a folder.

    Raises FoundationProblem for a folder that is none or is damaged, BenchmarkProblem for a model of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = load_part(AutoConfig, folder)
        kind = config.model_type
        self.classes: dict[str, int] | None = None  # of a fixed list
        device = default_device()
        if kind in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES:
            model = load_weights(AutoModelForZeroShotObjectDetection, folder, dtype=torch.float32)
            processor = load_part(AutoProcessor, folder)
            self._query = QUERIES.get(kind, "{}")
            self._find = pipeline(
                "zero-shot-object-detection",
                model=model.eval(),
                image_processor=processor.image_processor,
                tokenizer=processor.tokenizer,
                device=device,
            )
            return
        self.classes = {name.lower(): number for number, name in config.id2label.items()}
        self._processor = load_part(AutoImageProcessor, folder)
        self._masks = kind in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
        if self._masks and hasattr(self._processor, "post_process_instance_segmentation"):
            loaded = load_weights(AutoModelForUniversalSegmentation, folder, dtype=torch.float32)
        elif kind in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
            self._masks = False
            loaded = load_weights(AutoModelForObjectDetection, folder, dtype=torch.float32)
        else:
            raise BenchmarkProblem(folder / "config.json", "model_type", f"{kind!r} is no object detector")
        self._model = loaded.to(device).eval()

    def check(self, names: Sequence[str]) -> None:
        """Raises BenchmarkProblem for names that are no classes of a detector with a fixed list."""
        if self.classes is None:
            return
        if unknown := sorted({name for name in names if self._number(name) is None}):
            what = f"the detector knows {len(self.classes)} classes, not {', '.join(unknown)}"
            raise BenchmarkProblem(self.folder, "", what)

    def _number(self, name: str) -> int | None:
        """The class of a name, of a detector with a fixed list."""
        classes = self.classes or {}
        return next((classes[one] for one in (name, *OTHER_NAMES.get(name, ())) if one in classes), None)

    def find(self, image: Image.Image, names: Sequence[str], threshold: float) -> list[Found]:
        """The objects of these classes in an RGB image whose score is above the threshold."""
        if self.classes is None:
            asked = {self._query.format(name): name for name in names}
            answers = self._find(image, candidate_labels=list(asked), threshold=threshold)
            return [Found(asked[one["label"]], one["score"], _corners(one["box"])) for one in answers]
        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        size, by_number = [(image.height, image.width)], {self._number(name): name for name in names}
        found = self._with_masks if self._masks else self._with_boxes
        return found(outputs, threshold, size, by_number)

    def _with_boxes(self, outputs: Any, threshold: float, size: Any, names: dict[int | None, str]) -> list[Found]:
        (found,) = self._processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=size)
        rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return [Found(names[number], score, tuple(box)) for number, score, box in rows if number in names]

    def _with_masks(self, outputs: Any, threshold: float, size: Any, names: dict[int | None, str]) -> list[Found]:
        (found,) = self._processor.post_process_instance_segmentation(
            outputs, threshold=threshold, target_sizes=size, return_binary_maps=True
        )
        results = []
        for one in found["segments_info"]:
            if one["label_id"] in names:
                mask = np.asarray(found["segmentation"][one["id"]].cpu()) > 0  # (H, W)
                results.append(Found(names[one["label_id"]], one["score"], box_of(mask), mask))
        return results


def _corners(box: dict[str, int]) -> tuple[float, float, float, float]:
    return box["xmin"], box["ymin"], box["xmax"], box["ymax"]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest box around the pixels (H, W) of an object: left, top, right, bottom."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def crop(image: Image.Image, found: Found) -> Image.Image:
    """The part of an image in an object's box, grey outside of its mask; at least one pixel wide and high."""
    if found.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), Image.fromarray(found.mask))
    left, top = (min(max(round(at), 0), end - 1) for at, end in zip(found.box[:2], image.size, strict=True))
    right, bottom = (round(at) for at in found.box[2:])
    return image.crop((left, top, max(min(right, image.width), left + 1), max(min(bottom, image.height), top + 1)))


class ColourJudge:
    """Tells the colours of objects by CLIP: the nearest of the colours' texts, averaged over three templates."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._texts: dict[str, np.ndarray] = {}

    def texts(self, name: str) -> np.ndarray:
        """Unit embeddings (10, D) of the COLOURS of an object."""
        if name not in self._texts:
            lines = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            means = self.clip.embed_texts(lines).reshape(len(COLOURS), len(TEMPLATES), -1).mean(axis=1)
            self._texts[name] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return self._texts[name]

    def colours(self, image: Image.Image, found: Sequence[Found], name: str) -> list[str]:
        """The colour of each object."""
        crops = self.clip.embed_pictures([crop(image, one) for one in found])  # (N, D)
        return [COLOURS[number] for number in (crops @ self.texts(name).T).argmax(axis=1)]
