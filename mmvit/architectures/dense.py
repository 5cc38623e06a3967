"""Inference on whole images: sliding windows, test-time augmentation, label maps at the original size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .rows import Rows


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side; the last one ends at the border."""
    if side <= window:
        return [0]
    count = -(-(side - window) // stride) + 1
    return [min(i * stride, side - window) for i in range(count)]


def slide(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    window: tuple[int, int],
    stride: tuple[int, int],
    batch: int,
) -> Tensor:
    """Logits of overlapping windows, averaged where they overlap.

    Args:
        image: (3, H, W).
        network: (N, 3, h, w) -> (N, C, h, w).
        window, stride: (height, width) of a window and of its steps; a larger window than the image is cut to it.
        batch: windows per forward pass.

    Returns:
        (C, H, W).
    """
    height, width = image.shape[-2:]
    high, wide = min(window[0], height), min(window[1], width)
    rows, columns = window_starts(height, high, stride[0]), window_starts(width, wide, stride[1])
    places = [(y, x) for y in rows for x in columns]
    total: Tensor | None = None
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        logits = network(torch.stack([image[:, y : y + high, x : x + wide] for y, x in some]))
        if total is None:
            total = logits.new_zeros(logits.shape[1], height, width)
        for (y, x), window_logits in zip(some, logits):
            total[:, y : y + high, x : x + wide] += window_logits
    return total.div_(_cover(rows, high, height, image)[:, None] * _cover(columns, wide, width, image))


def _cover(starts: Sequence[int], window: int, side: int, like: Tensor) -> Tensor:
    """How many windows cover each position of a side."""
    count = like.new_zeros(side)
    for start in starts:
        count[start : start + window] += 1
    return count


def label_map(views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The class with the largest probability for each pixel.

    Args:
        views: logits (C, h_i, w_i) of one image, already un-flipped; with several, their softmax is averaged at `size`.
        size: (H, W) of the result.

    Returns:
        (1, H, W), uint8 for up to 255 classes, else int16. No more than one band of rows is held at full size.
    """
    wide = max(view.shape[2] for view in views)
    bands = zip(*(Rows.of(view).resized(*size).bands(wide) for view in views), strict=True)
    scores = ((parts[0][0], [band for _, band in parts]) for parts in bands)
    return _argmax_rows(((rows, x[0] if len(x) == 1 else sum(v.softmax(0) for v in x)) for rows, x in scores), size, views[0])


def label_map_of(scores: Rows, like: Tensor) -> Tensor:
    """The position of the largest of `scores` for each pixel, (1, H, W) on the device of `like`; types as `label_map`."""
    return _argmax_rows(scores.bands(), (scores.height, scores.width), like)


def _argmax_rows(bands: Iterable[tuple[slice, Tensor]], size: tuple[int, int], like: Tensor) -> Tensor:
    labels: Tensor | None = None
    for rows, scores in bands:
        if labels is None:
            dtype = torch.uint8 if len(scores) <= 255 else torch.int16
            labels = torch.empty(1, *size, dtype=dtype, device=like.device)
        labels[0, rows] = scores.argmax(0).to(labels.dtype)
    return labels
