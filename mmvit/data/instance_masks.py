"""The masks of a picture's objects, small until they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from mmvit.errors import UserError

#: of one object: polygons, float64 (n, 2) each, x and y in pixels; a compressed COCO RLE; or pixels, bool (H, W)
Source = tuple[np.ndarray, ...] | dict | np.ndarray


@dataclass(frozen=True)
class Axis:
    """Where the pixels of one side have gone: x becomes `scale` * x + `shift` on a side of `length` pixels, and is seen from
    `low` to `high`, beyond which it was cut off.
    """

    length: int
    low: float
    high: float
    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def of(cls, length: int) -> Axis:
        return cls(length, 0.0, length)

    def resized(self, length: int) -> Axis:
        factor = length / self.length
        return Axis(length, *(factor * value for value in (self.low, self.high, self.scale, self.shift)))

    def mirrored(self) -> Axis:
        low, high, shift = (self.length - value for value in (self.high, self.low, self.shift))
        return Axis(self.length, low, high, -self.scale, shift)

    def window(self, start: int, length: int) -> Axis:
        low, high = (min(max(value - start, 0.0), length) for value in (self.low, self.high))
        return Axis(length, low, high, self.scale, self.shift - start)

    def seen(self) -> np.ndarray:
        """Which pixels are not cut off, bool (length,)."""
        centres = np.arange(self.length) + 0.5
        return (centres > self.low) & (centres < self.high)

    def sources(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Which pixels have one of the `length` original pixels at their centre, bool, and the index of that."""
        positions = np.floor((np.arange(self.length) + 0.5 - self.shift) / self.scale + 1e-6).astype(int)
        inside = (positions >= 0) & (positions < length) & self.seen()
        return inside, positions[inside]


class InstanceMasks:
    """The masks of n objects in a picture, bool (n, H, W) once they are drawn.

    Kept are the outlines or RLEs of the annotation, and where their pixels have gone: mirroring, resizing and cutting cost
    nothing. Drawing happens at the final size: polygons are filled there, other masks take the value under each pixel's
    centre. Immutable; what is drawn is drawn once.
    """

    def __init__(self, sources: Sequence[Source], rows: Axis, columns: Axis) -> None:
        self.sources, self.rows, self.columns = tuple(sources), rows, columns

    @classmethod
    def of(cls, masks: InstanceMasks | np.ndarray) -> InstanceMasks:
        """`masks`, which may be pixels, bool (n, H, W)."""
        if isinstance(masks, InstanceMasks):
            return masks
        return cls(tuple(np.asarray(masks, dtype=bool)), Axis.of(masks.shape[1]), Axis.of(masks.shape[2]))

    @classmethod
    def read(cls, instances: Sequence[dict], shape: tuple[int, int], ann_file: str, image_id: Any) -> InstanceMasks:
        """The COCO ``segmentation`` of each object in a picture of `shape` (height, width).

        Raises:
            UserError: one is neither polygons nor RLE, or of another size; names file, picture and annotation.
        """
        sources = []
        for instance in instances:
            try:
                sources.append(_source(instance.get("segmentation"), tuple(shape)))
            except Exception:  # pycocotools raises bare Exception, TypeError, ... on what it cannot read
                raise UserError(
                    f"{ann_file}: 'segmentation' of annotation id {instance.get('ann_id')} (image id {image_id}) is no mask of "
                    f"{shape[1]}x{shape[0]} pixels. Give polygons [[x1, y1, x2, y2, x3, y3, ...]] or RLE {{'counts': ..., "
                    "'size': [height, width]}"
                ) from None
        return cls(sources, Axis.of(shape[0]), Axis.of(shape[1]))

    def flip(self) -> InstanceMasks:
        """Mirrored left-right."""
        return InstanceMasks(self.sources, self.rows, self.columns.mirrored())

    def resize(self, height: int, width: int) -> InstanceMasks:
        return InstanceMasks(self.sources, self.rows.resized(height), self.columns.resized(width))

    def window(self, top: int, left: int, height: int, width: int) -> InstanceMasks:
        """The part that begins at (`top`, `left`); beyond the picture there is nothing."""
        return InstanceMasks(self.sources, self.rows.window(top, height), self.columns.window(left, width))

    def any(self) -> np.ndarray:
        """Which masks have pixels, bool (n,)."""
        return self.pixels.reshape(len(self), self.rows.length * self.columns.length).any(axis=1)

    def boxes(self) -> np.ndarray:
        """The boxes around the masks' pixels, float32 (n, 4) xyxy; zeros where there are none."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, mask in zip(boxes, self.pixels):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if len(rows):
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes

    @cached_property
    def pixels(self) -> np.ndarray:
        """bool (n, H, W)."""
        pixels = np.zeros(self.shape, dtype=bool)
        for mask, source in zip(pixels, self.sources):
            if isinstance(source, tuple):
                self._fill(source, mask)
            else:
                self._sample(source if isinstance(source, np.ndarray) else mask_tools.decode(source), mask)
        return pixels

    def _fill(self, polygons: Sequence[np.ndarray], mask: np.ndarray) -> None:
        """Draws outlines into `mask`, in the window that holds them."""
        axes = (self.columns, self.rows)
        outlines = [points * [axis.scale for axis in axes] + [axis.shift for axis in axes] for points in polygons]
        low = np.floor(np.min([points.min(axis=0) for points in outlines], axis=0)).astype(int) - 1
        high = np.ceil(np.max([points.max(axis=0) for points in outlines], axis=0)).astype(int) + 1
        left, top = np.maximum(low, 0).tolist()
        right, bottom = np.minimum(high, self.shape[:0:-1]).tolist()
        if left >= right or top >= bottom:
            return
        shifted = [(points - (left, top)).ravel().tolist() for points in outlines]
        filled = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects(shifted, bottom - top, right - left)))
        seen = self.rows.seen()[top:bottom, None] & self.columns.seen()[left:right]
        mask[top:bottom, left:right] = filled.astype(bool) & seen

    def _sample(self, source: np.ndarray, mask: np.ndarray) -> None:
        """Draws pixels, (h, w), into `mask`."""
        (rows_in, rows), (columns_in, columns) = (
            axis.sources(side) for axis, side in zip((self.rows, self.columns), source.shape)
        )
        rows_in, columns_in = np.flatnonzero(rows_in), np.flatnonzero(columns_in)
        used = source.any(axis=1)[rows], source.any(axis=0)[columns]  # most objects fill a small part of the picture
        mask[np.ix_(rows_in[used[0]], columns_in[used[1]])] = source[np.ix_(rows[used[0]], columns[used[1]])]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.sources), self.rows.length, self.columns.length

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.pixels)

    def __getitem__(self, index: Any) -> InstanceMasks | np.ndarray:
        """One mask, bool (H, W), for an integer; those of a bool or integer array (m,)."""
        if isinstance(index, (int, np.integer)):
            return self.pixels[index]
        chosen = np.arange(len(self))[index]
        masks = InstanceMasks([self.sources[i] for i in chosen], self.rows, self.columns)
        if "pixels" in self.__dict__:
            masks.__dict__["pixels"] = self.pixels[chosen]
        return masks

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype=dtype) if copy or dtype not in (None, bool) else self.pixels


def _source(segmentation: Any, shape: tuple[int, int]) -> Source:
    """What `InstanceMasks` keeps of a COCO segmentation; any kind of exception when it is none."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        source = tuple(polygon for polygon in polygons if len(polygon) >= 3)
        if not source or not all(np.isfinite(polygon).all() for polygon in source):
            raise ValueError
        return source
    if isinstance(segmentation["counts"], list):
        segmentation = mask_tools.frPyObjects(segmentation, *shape)
    if mask_tools.decode(segmentation).shape != shape:
        raise ValueError
    return segmentation
