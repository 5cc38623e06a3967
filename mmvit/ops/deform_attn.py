"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3) and its discrete form (RT-DETRv2,
arXiv:2407.17140)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .sampling import at_least_float32, weighted_rows

Shapes = Tensor | Sequence[Sequence[int]]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor | Sequence[Tensor],
    attention_weights: Tensor | Sequence[Tensor],
    method: str = "bilinear",
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """For every query and head: the sum over levels and points of weight × value sampled at the point.

    Args:
        value: (B, N, heads, dim), the levels' pixels row by row, one level after the other; N = sum of h·w.
        spatial_shapes: (h, w) of each of the L levels.
        sampling_locations: (x, y) with 0 and 1 at the outer borders of the map; outside it values are zero. One of
            (B, Q, heads, L, P, 2); a list of L tensors (B, Q, heads, P_l, 2); (B, Q, heads, sum of P_l, 2) together
            with `num_points`.
        attention_weights: the same without the last axis.
        method: ``"bilinear"``, or ``"discrete"``: the pixel at trunc(location·(w, h) + 0.5), both coordinates clamped
            to 0..h-1 as in the official RT-DETRv2 (and x to the map's width), without gradient to the locations.
        num_points: P_l for each level where the points of all levels are flattened into one axis.

    Returns:
        (B, Q, heads·dim).

    Raises:
        ValueError: the shapes do not fit together, or `method` is unknown.
    """
    if method not in ("bilinear", "discrete"):
        raise ValueError(f"method must be 'bilinear' or 'discrete', got {method!r}")
    shapes = _as_shapes(spatial_shapes)
    locations, weights, points = _flatten_points(sampling_locations, attention_weights, num_points, len(shapes))
    _check(value, shapes, locations, weights, points)
    if method == "bilinear" and len(set(points)) == 1:
        found = native.find("ms_deform_attn", value.device)
        if found is not None and value.dtype != torch.bfloat16:
            return found.function(
                value, shapes, locations.unflatten(3, (len(shapes), points[0])), weights.unflatten(3, (len(shapes), points[0]))
            )
    wide = at_least_float32(value)
    locations, weights = locations.to(wide.dtype), weights.to(wide.dtype)
    if method == "discrete":
        output = _discrete(wide, shapes, locations, weights, points)
    elif value.device.type == "cpu" and not _is_exporting():
        output = _bilinear_rows(wide, shapes, locations, weights, points)
    else:
        output = _bilinear_grid(wide, shapes, locations, weights, points)
    return output.to(value.dtype)


def _is_exporting() -> bool:
    # older PyTorch cannot tell export from compilation
    return torch.onnx.is_in_onnx_export() or getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()


def _as_shapes(spatial_shapes: Shapes) -> list[tuple[int, int]]:
    rows = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return [(int(height), int(width)) for height, width in rows]


def _flatten_points(
    locations: Tensor | Sequence[Tensor], weights: Tensor | Sequence[Tensor], num_points: Sequence[int] | None, levels: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Locations (B, Q, heads, points of all levels, 2), weights without the last axis, points per level."""
    if not isinstance(locations, Tensor):
        points = [level.shape[3] for level in locations]
        weights = weights if isinstance(weights, Tensor) else torch.cat(list(weights), 3)
        return torch.cat(list(locations), 3), weights.flatten(3), points
    if locations.dim() == 6:
        return locations.flatten(3, 4), weights.flatten(3), [locations.shape[4]] * locations.shape[3]
    if num_points is None:
        raise ValueError(
            "flattened sampling_locations (B, Q, heads, points, 2) need num_points, the points of each level; "
            f"got shape {tuple(locations.shape)} for {levels} levels"
        )
    return locations, weights.flatten(3), [int(count) for count in num_points]


def _check(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, points: list[int]) -> None:
    pixels = sum(height * width for height, width in shapes)
    if value.dim() != 4 or value.shape[1] != pixels:
        raise ValueError(f"value must be (B, {pixels}, heads, dim) for the levels {shapes}, got {tuple(value.shape)}")
    expected = (value.shape[0], locations.shape[1], value.shape[2], sum(points), 2)
    if len(points) != len(shapes) or tuple(locations.shape) != expected or weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"{len(shapes)} levels with {points} points need sampling_locations {expected} and attention_weights "
            f"{expected[:-1]}, got {tuple(locations.shape)} and {tuple(weights.shape)}"
        )


def _per_point(values: Sequence[int], points: Sequence[int], like: Tensor) -> Tensor:
    """(points of all levels,): the level's value for each point."""
    return like.new_tensor([value for value, count in zip(values, points) for _ in range(count)])


def _row_base(value: Tensor, shapes: list[tuple[int, int]], points: list[int]) -> Tensor:
    """(B, 1, heads, points): row of the level's first pixel in the table (B·N·heads, dim)."""
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    batch, pixels, heads, _ = value.shape
    image = torch.arange(batch, device=value.device)[:, None, None, None] * pixels
    start = torch.tensor([s for s, count in zip(starts, points) for _ in range(count)], device=value.device)
    return (image + start) * heads + torch.arange(heads, device=value.device)[:, None]


def _bilinear_rows(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, points: list[int]
) -> Tensor:
    """All levels at once: each query and head is one weighted sum of rows of `value`.

    The taps are spelled out on flat (B, Q, heads, points) tensors, in floats (exact up to 2^24) and with the attention
    weight folded in early: on a CPU this takes a fifth of the time of `grid_sample` per level.
    """
    width = _per_point([w for _, w in shapes], points, locations)
    height = _per_point([h for h, _ in shapes], points, locations)
    columns, column_weights = _taps(locations[..., 0] * width - 0.5, width - 1)
    rows, row_weights = _taps(locations[..., 1] * height - 0.5, height - 1)
    row_weights = [weight * weights for weight in row_weights]
    index = torch.stack([row * width + column for row in rows for column in columns], -1).long()
    index = index.mul_(value.shape[2]).add_(_row_base(value, shapes, points)[..., None])
    weight = torch.stack([row * column for row in row_weights for column in column_weights], -1)
    return _gather(value, index, weight)


def _taps(position: Tensor, last: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Lower and upper neighbour of each position, inside 0..last, and their weights (zero for one that lay outside)."""
    with torch.no_grad():
        low = position.floor()
        taps = [low, low + 1]
        inside = [tap.nan_to_num(0.0).clamp(min=0).minimum(last) for tap in taps]
    fraction = position - low
    weights = [weight * (tap == clamped) for weight, tap, clamped in zip((1 - fraction, fraction), taps, inside)]
    return inside, weights


def _gather(value: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Rows of value (B, N, heads, dim), summed for each query and head: (B, Q, heads·dim)."""
    batch, queries, heads = index.shape[:3]
    table = value.reshape(-1, value.shape[-1])
    rows = weighted_rows(table, index.reshape(batch * queries * heads, -1), weight.reshape(batch * queries * heads, -1))
    return rows.view(batch, queries, heads * value.shape[-1])


def _bilinear_grid(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, points: list[int]
) -> Tensor:
    """One `grid_sample` per level: the form for CUDA and for export, where it is a single operator."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).split(list(points), 2)  # each (B·heads, Q, P_l, 2)
    levels = value.split([height * width for height, width in shapes], 1)
    sampled = [
        F.grid_sample(
            level.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width),
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for level, grid, (height, width) in zip(levels, grids, shapes)
    ]  # each (B·heads, dim, Q, P_l)
    attention = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.cat(sampled, -1) * attention).sum(-1)
    return output.view(batch, heads * dim, queries).transpose(1, 2).contiguous()


def _discrete(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, points: list[int]) -> Tensor:
    locations = locations.detach()
    width = _per_point([w for _, w in shapes], points, locations)
    height = _per_point([h for h, _ in shapes], points, locations)
    column = (locations[..., 0] * width + 0.5).long().clamp(min=0).minimum(torch.minimum(height, width).long() - 1)
    row = (locations[..., 1] * height + 0.5).long().clamp(min=0).minimum(height.long() - 1)
    index = (row * width.long() + column) * value.shape[2] + _row_base(value, shapes, points)
    if value.device.type == "cpu" and not _is_exporting():
        return _gather(value, index, weights)
    batch, queries, heads, _ = index.shape
    rows = value.reshape(-1, value.shape[-1])[index]  # (B, Q, heads, points, dim)
    return (rows * weights[..., None]).sum(-2).reshape(batch, queries, -1)
