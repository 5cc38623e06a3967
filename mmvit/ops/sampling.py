"""Bilinear sampling as weighted sums of table rows, the core of the sampling kernels.

A feature map laid out channels-last is a table with one row of channels per pixel. Reading it between pixels is a
weighted sum of rows, and that sum is what `torch.nn.functional.embedding_bag` computes, with gradients to the table
and to the weights, without ever storing the gathered rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_taps(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each position and their bilinear weights; pixels outside the map weigh nothing.

    Args:
        y, x: (...) positions in pixels; pixel centres lie at whole numbers.
        height, width: size of the map.

    Returns:
        index (..., 4) int64 into the row-major pixels, always inside the map, and weight (..., 4), differentiable
        in `y` and `x`. As in the compiled kernels the derivative at a whole number is that towards the next pixel, but
        zero at -1, where the convolutions of a zero-initialised offset have their padding.
        A position that is not finite gets a valid index and weights that are not finite.
    """
    y_low, x_low = y.detach().floor(), x.detach().floor()
    rows, row_weights = _axis_taps(y - y_low, y_low, height)
    columns, column_weights = _axis_taps(x - x_low, x_low, width)
    index = torch.stack([rows[i] * width + columns[j] for i in (0, 1) for j in (0, 1)], -1)
    weight = torch.stack([row_weights[i] * column_weights[j] for i in (0, 1) for j in (0, 1)], -1)
    return index, weight


def _axis_taps(fraction: Tensor, low: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    indices, weights = [], []
    for tap, weight in ((low, 1 - fraction), (low + 1, fraction)):
        indices.append(tap.long().clamp(0, size - 1))  # after the conversion: NaN becomes a number and then a valid index
        weights.append(weight * ((tap >= 0) & (tap < size)))
    weights[1] = weights[1] * ((low >= 0) | (fraction > 0))
    return tuple(indices), tuple(weights)


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """Sum of weighted rows of `table` for each bag of indices.

    Args:
        table: (rows, channels).
        index: (bags, taps), or (taps of all bags,) together with `starts`.
        weight: like `index`, of the table's dtype.
        starts: (bags,) position in `index` where each bag begins; a bag may be empty.

    Returns:
        (bags, channels); zeros for an empty bag. Gradients flow to `table` and `weight`.
    """
    bags = index.shape[0] if starts is None else starts.shape[0]
    if bags == 0 or index.numel() == 0 or table.shape[0] == 0:
        return table[:0].sum(0).repeat(bags, 1)  # zeros that still hang on the graph
    return F.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weight)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor`, with half precision widened to float32: positions need more than 11 bits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
