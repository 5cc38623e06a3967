"""Masks of boxes: small probability maps pasted into pictures, as COCO RLE; targets cut out of the objects' masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_tools
from torch import Tensor

from mmvit.ops import roi_align

_VALUES = 1 << 26  # numbers of full-size masks held at once


def paste_rle(maps: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> list[dict[str, Any]]:
    """Masks of a picture from the probability maps of its boxes.

    A map is stretched over its box and read bilinearly at the centres of the pixels, zero beyond its border. One box is
    computed at a time, within its own pixels: memory does not grow with the number of boxes.

    Args:
        maps: (n, h, w) from 0 to 1.
        boxes: (n, 4) x1 y1 x2 y2 in pixels of the picture.
        size: (height, width) of the picture.
        threshold: a pixel with this probability or more belongs to the mask.

    Returns:
        n COCO RLE dicts, ``size`` and compressed ``counts``.
    """
    maps, boxes = maps.float().cpu().numpy(), boxes.float().cpu().numpy()
    return [_pasted(image, box, size, threshold) for image, box in zip(maps, boxes, strict=True)]


def _pasted(image: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float) -> dict[str, Any]:
    (top, rows), (left, columns) = (
        _stretch(box[axis], box[axis + 2], size[1 - axis], image.shape[1 - axis]) for axis in (1, 0)
    )
    return encode_part((rows @ image @ columns.T) >= threshold, top, left, size)


def _stretch(low: float, high: float, side: int, cells: int) -> tuple[int, np.ndarray]:
    """The first pixel of a side that an interval touches, and the weights (pixels, cells) of the cells at its pixels."""
    if not high > low:
        return 0, np.zeros((0, cells), np.float32)
    first, last = max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, side)
    centres = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    places = (centres - low) * np.float32(cells) / (high - low) - np.float32(0.5)
    return first, np.maximum(1 - np.abs(places[:, None] - np.arange(cells, dtype=np.float32)), 0)


def encode_part(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO RLE of a picture of `size` (height, width) that is `mask`, bool (h, w), at `top` and `left`, and else empty."""
    height, width = size
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)  # a column of the picture is a row here
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(np.diff(columns))  # runs begin and end in turn
    places = (left + column) * height + top + row
    twice = np.flatnonzero(places[1:-1:2] == places[2::2])  # a run to the bottom goes on at the top of the next column
    places = np.delete(places, np.concatenate([2 * twice + 1, 2 * twice + 2]))
    end = height * width
    counts = np.diff(places, prepend=0, append=[] if len(places) and places[-1] == end else [end])
    return mask_tools.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)


class ObjectMasks:
    """The masks of a picture's objects, of which mmdet's mask head asks the targets of its boxes.

    Args:
        masks: bool (n, H, W), on any device, where the targets are computed, too.
    """

    def __init__(self, masks: Tensor):
        self.masks = masks
        self.height, self.width = masks.shape[1:]

    def __len__(self) -> int:
        return len(self.masks)

    def crop_and_resize(
        self, boxes: np.ndarray, size: tuple[int, int], inds: np.ndarray, device: Any = None, binarize: bool = True
    ) -> _Targets:
        """What the masks `inds` (k,) cover of `boxes` (k, 4), in `size` (h, w) cells each: averages, or whether 0.5 or more."""
        device = self.masks.device
        owner, rois = torch.as_tensor(inds, device=device), torch.as_tensor(boxes, device=device)
        targets = rois.new_zeros(len(rois), *size)
        step = max(1, _VALUES // (self.height * self.width))
        for first in range(0, len(self), step):
            part = (owner >= first) & (owner < first + step)
            index = (owner[part] - first).to(rois.dtype)
            masks = self.masks[first : first + step, None].to(rois.dtype)
            targets[part] = roi_align(masks, torch.cat([index[:, None], rois[part]], 1), size)[:, 0]
        return _Targets(targets >= 0.5 if binarize else targets)


class _Targets:
    def __init__(self, targets: Tensor):
        self.targets = targets

    def to_ndarray(self) -> np.ndarray:
        """(k, h, w)."""
        return self.targets.cpu().numpy()
