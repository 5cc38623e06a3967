"""Windows of a map: cutting, shifting, relative positions. Maps are channels-last: (B, H, W, C)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Height and width of a window, of a shift or of a map.
Size = tuple[int, int]


def tensor_cache(maxsize: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Remember the last `maxsize` results of a function that makes constant tensors from hashable arguments.

    Results can take part in training, also those first made in inference mode. Nothing is remembered while a graph is traced.
    """

    def decorate(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.lru_cache(maxsize)
        def remembered(*args) -> Tensor:
            with torch.inference_mode(False):
                return make(*args)

        @functools.wraps(make)
        def call(*args) -> Tensor:
            return make(*args) if torch.compiler.is_compiling() else remembered(*args)

        return call

    return decorate


def pad_to_multiple(x: Tensor, size: Size, value: Tensor | None = None) -> Tensor:
    """Pad (B, H, W, C) at the bottom and the right to multiples of `size`, with zeros or with the vector `value` (C)."""
    height, width = x.shape[1:3]
    bottom, right = -height % size[0], -width % size[1]
    if not (bottom or right):
        return x
    if value is None:
        return F.pad(x, (0, 0, 0, right, 0, bottom))
    padded = value.to(x.dtype).expand(len(x), height + bottom, width + right, -1).clone()
    padded[:, :height, :width] = x
    return padded


def window_partition(x: Tensor, size: Size) -> Tensor:
    """(B, H, W, C) -> (B * windows, h*w tokens, C); windows and their tokens row by row. H, W are multiples of `size`."""
    batch, height, width, channels = x.shape
    h, w = size
    x = x.view(batch, height // h, h, width // w, w, channels)
    return x.transpose(2, 3).reshape(-1, h * w, channels)


def window_reverse(windows: Tensor, size: Size, height: int, width: int) -> Tensor:
    """The inverse of `window_partition`: (B * windows, h*w, C) -> (B, height, width, C)."""
    h, w = size
    x = windows.view(-1, height // h, width // w, h, w, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


@tensor_cache(maxsize=32)
def relative_position_index(size: Size, device: torch.device) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: (h*w queries, h*w keys).

    The row is ``(r1 - r2 + h - 1) * (2w - 1) + (c1 - c2 + w - 1)`` for a query at (r1, c1) and a key at (r2, c2).
    """
    h, w = size
    token = torch.arange(h * w, device=device)
    row, column = token // w, token % w
    rows = row[:, None] - row[None] + h - 1
    columns = column[:, None] - column[None] + w - 1
    return rows * (2 * w - 1) + columns


def relative_position_bias(table: Tensor, size: Size) -> Tensor:
    """The bias of each head: table ((2h-1) * (2w-1), heads) -> (heads, h*w queries, h*w keys)."""
    tokens = size[0] * size[1]
    index = relative_position_index(size, table.device).view(-1)
    return table.t().index_select(1, index).view(-1, tokens, tokens)


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resize the table of a square window, ((2M-1)^2, heads), bicubically to ``rows = (2M'-1)^2``."""
    old, new = (round(count**0.5) for count in (len(table), rows))
    if old * old != len(table) or new * new != rows:
        return table
    grid = table.t().reshape(1, -1, old, old).to(torch.promote_types(table.dtype, torch.float32))
    resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return resized.view(-1, rows).t().contiguous().to(table.dtype)


@tensor_cache(maxsize=8)
def shift_mask(height: int, width: int, size: Size, shift: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What to add to the attention of a map that was rolled by ``-shift``: (windows, tokens, tokens) of 0 and -100.

    After rolling, the last windows hold tokens from opposite borders of the map; such pairs get -100. `height` and `width`
    (of the padded map) are multiples of the window's `size`.
    """

    def labels(length: int, window: int, step: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).int() + (position >= length - step).int() * (step > 0)

    regions = 3 * labels(height, size[0], shift[0])[:, None] + labels(width, size[1], shift[1])
    regions = window_partition(regions[None, :, :, None], size)  # (windows, tokens, 1)
    return (regions != regions.transpose(1, 2)).to(dtype).mul_(-100.0)
