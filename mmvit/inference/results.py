"""What a model finds in a picture: `Detections`, a `Segmentation` or a `PanopticSegmentation`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmvit.data.classes import (
    ADE20K_CLASSES,
    CITYSCAPES_CLASSES,
    COCO_CATEGORY_IDS,
    COCO_CLASSES,
    COCO_PANOPTIC_CATEGORY_IDS,
    COCO_PANOPTIC_CLASSES,
    Colour,
    palette_for,
)
from mmvit.data.panoptic_files import check_pixels, check_segments, segment_positions, write_panoptic
from mmvit.errors import UserError


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


#: Category id of each class of well-known data sets, as their prepared annotation files have them.
_CATEGORY_IDS = {
    COCO_CLASSES: COCO_CATEGORY_IDS,
    COCO_PANOPTIC_CLASSES: COCO_PANOPTIC_CATEGORY_IDS,
    ADE20K_CLASSES: tuple(range(len(ADE20K_CLASSES))),
    CITYSCAPES_CLASSES: tuple(range(len(CITYSCAPES_CLASSES))),
}


def _category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    return _CATEGORY_IDS.get(tuple(classes)) or tuple(range(1, len(classes) + 1))


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


@dataclass(frozen=True)
class Segment:
    """A segment of a `PanopticSegmentation`.

    Attributes:
        id: its number in the map.
        label: position of its class in ``classes``.
        name: name of its class.
        isthing: whether it is one object of its class (a car); else it is all that there is of the class (the sky).
        score: from 0 to 1; None where none is known, as in annotations.
        area: its pixels.
    """

    id: int
    label: int
    name: str
    isthing: bool
    score: float | None
    area: int


@dataclass
class PanopticSegmentation:
    """The segment of every pixel of one picture: objects one by one, and regions of what is not counted.

    Attributes:
        ids: unsigned integers (H, W) at the size of the original picture: the segment of each pixel, 0 where there is none.
        segments: every segment of the map, in the model's order.
        classes: names of all classes that the model knows.
        things: positions in `classes` of those whose objects are told apart.
        palette: RGB colour of each class; see `palette_for` where none is given.
        cat_ids: category id of each class in the annotation files; those of COCO, ADE20K or Cityscapes where `classes` are
            theirs, else 1, 2, 3 ...
    """

    ids: np.ndarray = field(repr=False)
    segments: tuple[Segment, ...]
    classes: tuple[str, ...]
    things: tuple[int, ...]
    palette: tuple[Colour, ...] = field(default=(), repr=False)
    cat_ids: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        segments_info: Sequence[Mapping[str, Any]],
        classes: Sequence[str],
        things: Iterable[int],
        palette: Sequence[Colour] = (),
        cat_ids: Sequence[int] = (),
        name: str = "panoptic segmentation",
    ) -> PanopticSegmentation:
        """From a map of ids, integers (H, W), and ``dict(id, label, score)`` of each segment (the score may be missing).

        Raises:
            UserError: ids and segments do not fit together, or a label is no class; begins with `name`.
        """
        known = check_segments(segments_info, name)
        labels = [int(segment["label"]) for segment in segments_info]
        for segment_id, label in zip(known.tolist(), labels):
            if not 0 <= label < len(classes):
                raise UserError(f"{name}: segment {segment_id} has label {label}, but there are {len(classes)} classes")
        present, pixels = np.unique(ids, return_counts=True)
        area_of = dict(zip(present.tolist(), pixels.tolist()))
        areas = [area_of.get(segment_id, 0) for segment_id in known.tolist()]
        check_pixels(np.array(areas), present[segment_positions(present, known) > len(known)], known, name)
        counted = frozenset(things)
        segments = tuple(
            Segment(segment_id, label, classes[label], label in counted, _score(segment), area)
            for segment_id, label, area, segment in zip(known.tolist(), labels, areas, segments_info)
        )
        small = ids.astype(np.min_scalar_type(int(present[-1])), copy=False)
        return cls(small, segments, tuple(classes), tuple(sorted(counted)), tuple(palette), tuple(cat_ids))

    def __post_init__(self) -> None:
        self.palette = tuple(self.palette) or tuple(palette_for(self.classes))
        self.cat_ids = tuple(self.cat_ids) or _category_ids(self.classes)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the original picture."""
        return self.ids.shape

    @property
    def names(self) -> list[str]:
        """Class name of each segment."""
        return [segment.name for segment in self.segments]

    @property
    def void(self) -> int:
        """Pixels without a segment."""
        return self.ids.size - sum(segment.area for segment in self.segments)

    def mask(self, segment_id: int) -> np.ndarray:
        """The pixels of a segment, bool (H, W)."""
        return self.ids == segment_id

    def positions(self) -> np.ndarray:
        """The position in `segments` of every pixel's segment, int64 (H, W); ``len(segments)`` where there is none."""
        return segment_positions(self.ids, np.array([segment.id for segment in self.segments], np.int64))

    @cached_property
    def boxes(self) -> np.ndarray:
        """The box around each segment, int64 (k, 4), x1 y1 x2 y2 in pixels."""
        from scipy.ndimage import find_objects

        slices = find_objects(self.positions() + 1)[: len(self.segments)]  # what follows is void
        found = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in slices]
        return np.array(found, np.int64).reshape(-1, 4)

    def pixels(self) -> dict[int, int]:
        """Number of pixels of each class that occurs, by position in `classes`, the largest first."""
        counts: dict[int, int] = {}
        for segment in self.segments:
            counts[segment.label] = counts.get(segment.label, 0) + segment.area
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def categories(self) -> list[dict[str, Any]]:
        """The classes as COCO panoptic files list them: ``dict(id, name, isthing, color)``."""
        return [
            {"id": int(cat_id), "name": name, "isthing": int(label in self.things), "color": list(colour)}
            for label, (cat_id, name, colour) in enumerate(zip(self.cat_ids, self.classes, self.palette))
        ]

    def to_coco(self, image_id: int | str, file_name: str) -> dict[str, Any]:
        """What `mmvit.evaluation.write_panoptic` takes of a picture: ``image_id, file_name, ids`` and the segments as
        ``dict(id, category_id, score)``.
        """
        segments = [
            {"id": segment.id, "category_id": int(self.cat_ids[segment.label])}
            | ({} if segment.score is None else {"score": segment.score})
            for segment in self.segments
        ]
        return {"image_id": image_id, "file_name": file_name, "ids": self.ids, "segments_info": segments}

    def to_dict(self) -> dict[str, Any]:
        """``height``, ``width`` and ``segments``: ``dict(id, category_id, category_name, isthing, area, bbox, score)`` of each,
        the box as x, y, width, height.
        """
        height, width = self.image_size
        segments = [
            {
                "id": segment.id,
                "category_id": int(self.cat_ids[segment.label]),
                "category_name": segment.name,
                "isthing": int(segment.isthing),
                "area": segment.area,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": segment.score,
            }
            for segment, (x1, y1, x2, y2) in zip(self.segments, self.boxes.tolist())
        ]
        return {"height": height, "width": width, "segments": segments}

    def save(self, json_path: str | os.PathLike[str], image_id: int | str = 1, file_name: str = "image.jpg") -> None:
        """Write a COCO panoptic json of this picture, and a folder of the same name with the PNG whose colours are the ids
        (R + 256 G + 65536 B).

        Args:
            image_id, file_name: the picture's; the PNG is named like it.
        """
        json_path = Path(json_path)
        write_panoptic(json_path.with_suffix(""), json_path, [self.to_coco(image_id, file_name)], self.categories())


def _score(segment: Mapping[str, Any]) -> float | None:
    return None if segment.get("score") is None else round(float(segment["score"]), 6)
