"""Resizing of maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear or bicubic (corners not aligned) or nearest; a single pixel is broadcast."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.shape[-2:] == (1, 1):
        return x.expand(-1, -1, *size)
    return F.interpolate(x, size, mode=mode, align_corners=None if mode == "nearest" else False)


def odd_resize(x: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear; corners are aligned exactly where `side` is odd (sides of 32 k + 1)."""
    return F.interpolate(x, size, mode="bilinear", align_corners=side % 2 == 1)
