"""What a model finds in a picture: `Detections`, or a `Segmentation`."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmvit.data.classes import COCO_CATEGORY_IDS, COCO_CLASSES, Colour, palette_for


@dataclass
class Detections:
    """What was found in one picture, best first.

    Attributes:
        boxes: float32 (k, 4), x1 y1 x2 y2 in pixels of the original picture.
        scores: float32 (k,), from 0 to 1.
        labels: int64 (k,), positions in `classes`.
        classes: names of all classes that the model knows.
        image_size: (height, width) of the original picture.
        cat_ids: category id of each class in the annotation files; 1, 2, 3 ... where none are known.
        masks: COCO RLE of each detection, ``dict(size, counts)`` with compressed counts, at `image_size`; None for a model that
            predicts boxes only.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    cat_ids: tuple[int, ...] = field(default=(), repr=False)
    masks: list[dict[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.cat_ids = self.cat_ids or _category_ids(self.classes)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.classes[label] for label in self.labels]

    def filter(self, score_thr: float) -> Detections:
        """The detections with a score of at least `score_thr`."""
        keep = self.scores >= score_thr
        masks = None if self.masks is None else [mask for mask, kept in zip(self.masks, keep) if kept]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], masks=masks)

    def mask(self, index: int) -> np.ndarray:
        """The mask of a detection, bool (H, W)."""
        from pycocotools import mask as mask_tools

        return mask_tools.decode(self.masks[index]).astype(bool)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO results: one dict per detection with ``image_id, category_id, category_name, bbox [x, y, w, h], score``, and
        where there are masks ``segmentation``, RLE with the counts as text.
        """
        sizes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).astype(float)
        found = [
            {
                "image_id": image_id,
                "category_id": int(self.cat_ids[label]),
                "category_name": self.classes[label],
                "bbox": [round(side, 3) for side in box.tolist()],
                "score": round(float(score), 6),
            }
            for box, score, label in zip(sizes, self.scores, self.labels)
        ]
        for detection, mask in zip(found, self.masks or ()):
            counts = mask["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            detection["segmentation"] = {"size": [int(side) for side in mask["size"]], "counts": text}
        return found


def _category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    return COCO_CATEGORY_IDS if tuple(classes) == COCO_CLASSES else tuple(range(1, len(classes) + 1))


@dataclass
class Segmentation:
    """The class of every pixel of one picture.

    Attributes:
        mask: uint8 (H, W), int16 for more than 255 classes: positions in `classes`, at the size of the original picture.
        classes: names of all classes that the model knows.
        palette: RGB colour of each class; see `palette_for` where none is given.
    """

    mask: np.ndarray
    classes: tuple[str, ...]
    palette: tuple[Colour, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.palette = tuple(self.palette) or tuple(palette_for(self.classes))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the original picture."""
        return self.mask.shape

    def pixels(self) -> dict[int, int]:
        """Number of pixels of each class that occurs, by position in `classes`, the largest first."""
        counts = np.bincount(self.mask.reshape(-1), minlength=len(self.classes))
        return {int(label): int(counts[label]) for label in np.argsort(-counts, kind="stable") if counts[label]}

    def shares(self) -> dict[str, float]:
        """Share of the picture, 0..1, of each class that occurs, by name, the largest first."""
        return {self.classes[label]: count / self.mask.size for label, count in self.pixels().items()}

    def to_dict(self) -> dict[str, Any]:
        """``height``, ``width`` and ``classes``, a list of ``dict(class_id, name, pixels, share)``, the largest first."""
        height, width = self.image_size
        classes = [
            {"class_id": label, "name": self.classes[label], "pixels": count, "share": round(count / self.mask.size, 6)}
            for label, count in self.pixels().items()
        ]
        return {"height": height, "width": width, "classes": classes}

    def index_png(self) -> bytes:
        """The mask as a PNG file: the pixels are positions in `classes`, shown in the colours of `palette`.

        With more than 255 classes it is a PNG of 16-bit greys, without colours.
        """
        if self.mask.dtype == np.uint8:
            image = Image.fromarray(self.mask, "P")
            image.putpalette(np.asarray(self.palette, np.uint8).tobytes())
        else:
            image = Image.fromarray(self.mask.astype(np.uint16))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def save_index(self, path: str | os.PathLike[str]) -> None:
        """Write `index_png` to `path`."""
        Path(path).write_bytes(self.index_png())
