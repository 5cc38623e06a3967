"""Varying window attention (VWFormer, arXiv 2404.16573, section 4): queries of a local window see an r times wider context.

A map of h x w pixels is cut into `GRID` x `GRID` windows of p x s pixels. The context of a window is the r p x r s region
around it, read from a map with C / r^2 channels, and folded (space to depth) to p x s tokens of C channels: it costs what a
local window costs, for every r. Nothing of r^2 times the size is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvNorm

GRID = 8


def pad_to_windows(x: Tensor) -> Tensor:
    """Zeros right and below until both sides are multiples of `GRID` and a window has 2 x 2 pixels at least."""
    height, width = (max(2 * GRID, -(-side // GRID) * GRID) for side in x.shape[-2:])
    if (height, width) == tuple(x.shape[-2:]):
        return x
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


def query_windows(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N * GRID^2, p * s, C), windows and pixels in row-major order."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, GRID, height // GRID, GRID, width // GRID)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch * GRID**2, -1, channels)


def merge_windows(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `query_windows`: (N * GRID^2, p * s, C) -> (N, C, h, w)."""
    x = tokens.view(-1, GRID, GRID, height // GRID, width // GRID, tokens.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)


def _copy_shift(x: Tensor, ratio: int, dim: int) -> Tensor:
    """Pad by what lies further inside: copies of columns (rows), in their order, so that border windows have a context, too."""
    size, reach = x.shape[dim], ratio * x.shape[dim] // GRID
    start = (ratio + 1) * size // (2 * GRID)
    left = x.narrow(dim, start, reach - start)
    right = x.narrow(dim, size - reach, reach - start)
    return torch.cat([left, x, right], dim)


def context_windows(x: Tensor, ratio: int) -> Tensor:
    """The folded contexts of all windows: (N, C / r^2, h, w) -> (N * GRID^2, p * s, C).

    Pixel (y r + i, x r + j) of a context becomes channels ``(i r + j) C / r^2 ...`` of token (y, x).
    """
    batch, _, height, width = x.shape
    rows, columns = height // GRID, width // GRID
    x = _copy_shift(_copy_shift(x, ratio, 3), ratio, 2)
    windows = x.unfold(2, ratio * rows, rows).unfold(3, ratio * columns, columns)  # a view (N, C/r^2, GRID, GRID, r p, r s)
    windows = windows.unflatten(-1, (columns, ratio)).unflatten(-3, (rows, ratio))
    return windows.permute(0, 2, 3, 4, 6, 5, 7, 1).reshape(batch * GRID**2, rows * columns, -1)


class _WindowAttention(nn.Module):
    """Scaled dot-product attention inside windows; a subclass makes query, key and value, and projects the result."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(windows, tokens, C) each -> (windows, tokens, C)."""
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class VaryingWindowAttention(_WindowAttention):
    """The attention of `VWHead`: 1x1 convolutions theta (query), phi (key), g (value), and an output convolution with norm.

    `forward(x, context)`: x (N, C, h, w), context (N * GRID^2, p * s, C) from `context_windows` -> (N, C, h, w).
    The output norm starts at 0: a new branch adds nothing to its shortcut.
    """

    def __init__(self, channels: int, num_heads: int = 1):
        super().__init__(num_heads)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.conv_out = ConvNorm(channels, channels)
        nn.init.normal_(self.theta.weight, std=0.01)
        nn.init.zeros_(self.theta.bias)
        nn.init.zeros_(self.conv_out.norm.weight)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = query_windows(self.theta(x))
        key, value = (F.linear(context, conv.weight.flatten(1), conv.bias) for conv in (self.phi, self.g))
        return self.conv_out(merge_windows(self.attend(query, key, value), *x.shape[-2:]))


class PackedVaryingWindowAttention(_WindowAttention):
    """The attention of `VWCityHead` and of the pixel decoders: parameters named and packed as in `nn.MultiheadAttention`.

    `forward(x, context)`: shapes as in `VaryingWindowAttention`.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__(num_heads)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        channels = x.shape[1]
        query = F.linear(query_windows(x), self.in_proj_weight[:channels], self.in_proj_bias[:channels])
        key, value = F.linear(context, self.in_proj_weight[channels:], self.in_proj_bias[channels:]).chunk(2, -1)
        return merge_windows(self.out_proj(self.attend(query, key, value)), *x.shape[-2:])


class PreScaling(ConvNorm):
    """r x r convolution to C / r^2 channels that keeps the size: zeros r/2 - 1 before, r/2 behind. Batch norm, ReLU."""

    def __init__(self, channels: int, ratio: int, bias: bool = False):
        super().__init__(channels, channels // ratio**2, ratio, act="relu", padding=0, bias=bias)
        self.pads = (ratio // 2 - 1, ratio // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads))


def branches(x: Tensor, scalings: Sequence[nn.Module], attentions: Sequence[nn.Module], ratios: Sequence[int]) -> list[Tensor]:
    """Varying window attention of `x` (N, C, h, w) for each ratio; maps of the same shape, whatever h and w are."""
    height, width = x.shape[-2:]
    padded = pad_to_windows(x)
    return [
        attention(padded, context_windows(scaling(padded), ratio))[..., :height, :width]
        for scaling, attention, ratio in zip(scalings, attentions, ratios, strict=True)
    ]
