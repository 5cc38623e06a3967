"""Inference on whole images: sliding windows, test-time augmentation, label maps at the original size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_BAND = 1 << 24  # numbers held at once when label maps are made


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


def resized_bands(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """`logits` (C, h, w) resized bilinearly (corners not aligned) to `size`, one band of rows (C, rows, W) at a time."""
    channels, height, width = logits.shape
    step = max(1, _BAND // (channels * max(size[1], width)))
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        if height == size[0]:
            band = logits[:, rows]
        else:
            y = (torch.arange(rows.start, rows.stop, device=logits.device, dtype=torch.float64) + 0.5) * height / size[0] - 0.5
            y = y.clamp(0, height - 1)
            low = y.floor().long()
            part = (y - low).to(logits.dtype)[:, None]
            band = torch.lerp(logits[:, low], logits[:, (low + 1).clamp(max=height - 1)], part)
        if width != size[1]:
            band = F.interpolate(band[None], (band.shape[1], size[1]), mode="bilinear", align_corners=False)[0]
        yield rows, band


def label_map(views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The class with the largest probability for each pixel.

    Args:
        views: logits (C, h_i, w_i) of one image, already un-flipped; with several, their softmax is averaged at `size`.
        size: (H, W) of the result.

    Returns:
        (1, H, W), uint8 for up to 255 classes, else int16. No more than one band of rows is held at full size.
    """
    dtype = torch.uint8 if len(views[0]) <= 255 else torch.int16
    labels = torch.empty(1, *size, dtype=dtype, device=views[0].device)
    for bands in zip(*(resized_bands(view, size) for view in views), strict=True):
        rows = bands[0][0]
        scores = bands[0][1] if len(bands) == 1 else sum(band.softmax(0) for _, band in bands)
        labels[0, rows] = scores.argmax(0).to(dtype)
    return labels
