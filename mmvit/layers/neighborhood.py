"""Neighbourhood attention: every pixel of a map attends to the window of pixels around it.

Papers: "Neighborhood Attention Transformer" (arXiv 2204.07143) and "Dilated Neighborhood Attention Transformer" (arXiv
2209.15001), where the window skips pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError

from .attention import check_heads
from .position import resize_grid
from .window import tensor_cache

#: Side of the squares of queries that share one dense block of keys: with windows of 7 x 7, 64 queries share 14 x 14 keys.
TILE = 8


class AxisTiles(NamedTuple):
    """Tiles of one axis whose queries lie alike in their windows.

    queries: (tiles, q) positions; where a tile sticks out, its last query is repeated.
    keys: (tiles, s) positions; every window of the tile's queries lies within them.
    offsets: (q, s), entry of the bias table for each pair, ``key - query + kernel - 1`` counted in dilated steps;
        ``2 * kernel - 1`` for keys outside the query's window.
    """

    queries: Tensor
    keys: Tensor
    offsets: Tensor


class TileGroup(NamedTuple):
    """Tiles of a map whose queries lie alike in their windows.

    queries, keys: (tiles, q) and (tiles, s) pixels, counted row by row.
    bias: (q, s), entry of the bias table ((2 kernel)^2 entries, see `bias_table`) for each pair.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor


class Tiling(NamedTuple):
    """All tiles of a map by groups, and where each pixel (row by row) stands among the groups' queries."""

    groups: list[TileGroup]
    order: Tensor


def axis_tiles(length: int, kernel: int, dilation: int) -> list[AxisTiles]:
    """Cut an axis of `length` pixels into tiles; pixels of the same residue modulo `dilation` form an axis of their own.

    The window of a pixel holds the `kernel` nearest pixels of its residue: centred on it, but shifted inwards near the ends.
    """
    longest = -(-length // dilation)
    size = min(TILE, longest)
    span = min(size + kernel - 1, longest)
    groups: dict[tuple[int, ...], list[tuple[int, int, int, int]]] = {}
    for residue in range(dilation):
        count = -(-(length - residue) // dilation)
        for first in range(0, count, size):
            start = max(0, min(first - kernel // 2, count - span))
            like = (first - start, min(first, kernel), min(count - first, size + kernel))  # what decides upon the offsets
            groups.setdefault(like, []).append((residue, first, start, count))
    result = []
    for tiles in groups.values():
        residue, first, start, count = torch.tensor(tiles, device="cpu")[..., None].unbind(1)  # each (tiles, 1)
        queries = torch.minimum(first + torch.arange(size, device="cpu"), count - 1)
        keys = start + torch.arange(span, device="cpu")
        query, key, end = queries[0][:, None], keys[0], count[0]
        window = (query - kernel // 2).clamp_min(0).minimum(end - kernel)
        inside = (key >= window) & (key < window + kernel)
        offsets = torch.where(inside, key - query + kernel - 1, 2 * kernel - 1)
        result.append(AxisTiles(residue + dilation * queries, residue + dilation * torch.minimum(keys, count - 1), offsets))
    return result


@tensor_cache(maxsize=32)
def map_tiles(height: int, width: int, kernel: int, dilation: int, device: torch.device) -> Tiling:
    """Cut a map into tiles of up to TILE x TILE queries (of the same residues modulo `dilation`)."""

    def product(rows: Tensor, columns: Tensor, stride: int) -> Tensor:
        """(..., r) and (..., c) -> all ``row * stride + column``, (..., r * c), leading axes combined, too."""
        if rows.dim() == 1:
            return (rows[:, None] * stride + columns).flatten()
        return (rows[:, None, :, None] * stride + columns[None, :, None]).flatten(2).flatten(0, 1)

    groups, columns = [], axis_tiles(width, kernel, dilation)
    for row in axis_tiles(height, kernel, dilation):
        for column in columns:
            queries, keys = product(row.queries, column.queries, width), product(row.keys, column.keys, width)
            bias = 2 * kernel * row.offsets[:, None, :, None] + column.offsets[None, :, None]  # (q, q', s, s')
            groups.append(TileGroup(queries, keys, bias.flatten(2).flatten(0, 1)))
    pixels = torch.cat([group.queries.flatten() for group in groups])
    order = torch.empty(height * width, dtype=torch.long, device="cpu")
    order.scatter_(0, pixels, torch.arange(len(pixels), device="cpu"))
    return Tiling([TileGroup(*(t.to(device) for t in group)) for group in groups], order.to(device))


def bias_table(rpb: Tensor) -> Tensor:
    """(heads, 2k - 1, 2k - 1) -> (heads, (2k)^2) with a last row and column of -inf for keys outside the window."""
    return F.pad(rpb, (0, 1, 0, 1), value=float("-inf")).flatten(1)


def resize_rpb(rpb: Tensor, side: int) -> Tensor:
    """Resize the bias table of another window size, (heads, s, s), bicubically to (heads, side, side)."""
    return resize_grid(rpb.permute(1, 2, 0)[None], side, side, mode="bicubic")[0].permute(2, 0, 1)


def tiled_neighborhood_attention(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor, dilation: int) -> Tensor:
    """`neighborhood_attention` in plain PyTorch.

    Squares of queries share one dense block with the keys of all their windows, under a mask: for windows of 7 x 7 about three
    copies of all keys and values instead of 49, of which none outlives its group of tiles in evaluation.
    """
    batch, height, width, heads, dim = query.shape
    kernel = (rpb.shape[-1] + 1) // 2
    tiling = map_tiles(height, width, kernel, dilation, query.device)
    table = bias_table(rpb.to(query.dtype))

    def tiles(x: Tensor, pixels: Tensor) -> Tensor:
        """The given (tiles, n) pixels of each image: (B * tiles, heads, n, d)."""
        chosen = x.flatten(1, 2).index_select(1, pixels.flatten())
        return chosen.view(-1, pixels.shape[1], heads, dim).transpose(1, 2)

    outputs = []
    for queries, keys, bias in tiling.groups:
        mask = table.index_select(1, bias.flatten()).view(1, heads, *bias.shape)
        out = F.scaled_dot_product_attention(tiles(query, queries), tiles(key, keys), tiles(value, keys), attn_mask=mask)
        outputs.append(out.transpose(1, 2).reshape(batch, -1, heads * dim))
    return torch.cat(outputs, 1).index_select(1, tiling.order).view(batch, height, width, heads * dim)


@functools.cache
def natten_kernels() -> tuple[Callable[..., Tensor], Callable[..., Tensor]] | None:
    """natten's functions (query, key, rpb, kernel, dilation) -> logits and (attention, value, kernel, dilation) -> output.

    Both take (B, heads, H, W, d) maps. None where the package is missing, or is one from 0.20 on, which knows no bias.
    """
    try:
        from natten import functional
    except ImportError:
        return None
    if hasattr(functional, "na2d_qk"):  # 0.17 and later
        return lambda query, key, rpb, *window: functional.na2d_qk(query, key, *window, rpb=rpb), functional.na2d_av
    if hasattr(functional, "natten2dqkrpb"):
        return functional.natten2dqkrpb, functional.natten2dav
    return None


def natten_neighborhood_attention(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor, dilation: int) -> Tensor:
    """`neighborhood_attention` through the kernels of the package natten, whose attention weights are (B, heads, H, W, k^2).

    Checked against the tiles with natten 0.17.5 on a CPU, forward and backward. Its GPU kernels, and the older functions, have
    only been written for: they take the same arguments.
    """
    logits_of, output_of = natten_kernels()
    window = (rpb.shape[-1] + 1) // 2, dilation
    query, key, value = (x.permute(0, 3, 1, 2, 4).contiguous() for x in (query * query.shape[-1] ** -0.5, key, value))
    attention = logits_of(query, key, rpb.to(query.dtype), *window).softmax(-1)
    return output_of(attention.to(value.dtype), value, *window).permute(0, 2, 3, 1, 4).flatten(3)


def neighborhood_attention(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor, dilation: int = 1) -> Tensor:
    """Softmax attention of every pixel to its k x k nearest pixels, with a bias for each relative position.

    With a dilation, only pixels of the same residues modulo it count. Near the borders windows shift inwards, so that each has
    k x k pixels. On a GPU natten's kernels are used where they are installed; on a CPU they are many times slower than tiles.

    Args:
        query, key, value: (B, H, W, heads, d), with sides of at least ``k * dilation``.
        rpb: (heads, 2k - 1, 2k - 1), entry ``[key row - query row + k - 1, key column - query column + k - 1]`` for each pair,
            counted in dilated steps. k is odd.
        dilation: step between the pixels of a window.

    Returns:
        (B, H, W, heads * d).
    """
    attend = natten_neighborhood_attention if query.is_cuda and natten_kernels() else tiled_neighborhood_attention
    return attend(query, key, value, rpb, dilation)


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of every pixel to the window around it, with a bias for each relative position.

    (B, H, W, C) -> (B, H, W, C). A map smaller than the (dilated) window is padded with zeros at the bottom and the right; the
    padded pixels take part as keys.

    Args:
        dim, num_heads: channels and attention heads.
        kernel: side of the windows, odd.
        dilation: step between the pixels of a window.
    """

    def __init__(self, dim: int, num_heads: int, kernel: int, dilation: int = 1):
        super().__init__()
        check_heads(dim, num_heads)
        if kernel % 2 == 0:
            raise UserError(f"The windows of neighbourhood attention have a middle: give an odd side, not {kernel}.")
        self.num_heads, self.kernel, self.dilation = num_heads, kernel, dilation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * kernel - 1, 2 * kernel - 1))
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        side = self.kernel * self.dilation
        if height < side or width < side:
            x = F.pad(x, (0, 0, 0, max(0, side - width), 0, max(0, side - height)))
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        out = neighborhood_attention(query, key, value, self.rpb, self.dilation)
        return self.proj(out[:, :height, :width])
