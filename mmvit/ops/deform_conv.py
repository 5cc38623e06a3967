"""Deformable convolution, v1 (arXiv:1703.06211) and v2 with modulation (arXiv:1811.11168)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .sampling import at_least_float32, bilinear_taps, weighted_rows

Pair = int | tuple[int, int]
_COLUMN_VALUES = 1 << 26  # sampled values held in memory at once


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolution whose kernel taps are moved by learned offsets.

    Args:
        x: (B, C, H, W); zero outside, read bilinearly.
        offset: (B, deform_groups·kh·kw·2, H_out, W_out): (y, x) in pixels for each group of channels and kernel tap.
        weight: (C_out, C / groups, kh, kw).

    Returns:
        (B, C_out, H_out, W_out).

    Raises:
        ValueError: the shapes do not fit together.
    """
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups, deform_groups)
    x, weight = x.to(offset.dtype), weight.to(offset.dtype)
    _check(x, offset, None, weight, *geometry)
    found = native.find("deform_conv2d", x.device) if native.takes(x) and x.numel() else None
    if found is not None:
        return found.function(x, offset, weight, *geometry)
    return _deform_conv(x, offset, None, weight, None, *geometry)


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """`deform_conv2d` whose sampled values are also scaled.

    Args:
        mask: (B, deform_groups·kh·kw, H_out, W_out), the factor of each sample.
        bias: (C_out,) or None. The rest, result and errors as in `deform_conv2d`.
    """
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups, deform_groups)
    x, mask, weight = x.to(offset.dtype), mask.to(offset.dtype), weight.to(offset.dtype)
    bias = None if bias is None else bias.to(offset.dtype)
    _check(x, offset, mask, weight, *geometry)
    found = native.find("modulated_deform_conv2d", x.device) if native.takes(x) and x.numel() else None
    if found is not None:
        return found.function(x, offset, mask, weight, bias, *geometry)
    return _deform_conv(x, offset, mask, weight, bias, *geometry)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _output_size(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    reach = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    return tuple((x.shape[2 + i] + 2 * padding[i] - reach[i]) // stride[i] + 1 for i in (0, 1))


def _check(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> None:
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"x must be (B, C, H, W) and weight (C_out, C/groups, kh, kw), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    channels, taps = x.shape[1], weight.shape[2] * weight.shape[3]
    if channels != weight.shape[1] * groups or weight.shape[0] % groups or channels % deform_groups:
        raise ValueError(
            f"{channels} channels do not fit weight {tuple(weight.shape)} with groups={groups}, deform_groups={deform_groups}"
        )
    size = _output_size(x, weight, stride, padding, dilation)
    if min(size) <= 0:
        raise ValueError(f"the input {tuple(x.shape)} is too small: the output would be {size[0]}x{size[1]}")
    for name, tensor, count in (("offset", offset, 2 * deform_groups * taps), ("mask", mask, deform_groups * taps)):
        if tensor is not None and tuple(tensor.shape) != (x.shape[0], count, *size):
            raise ValueError(f"{name} must be {(x.shape[0], count, *size)}, got {tuple(tensor.shape)}")


def _deform_conv(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    size = _output_size(x, weight, stride, padding, dilation)
    kernel = (weight.shape[2], weight.shape[3])
    if x.numel() == 0 or weight.numel() == 0:
        output = weight.new_zeros(x.shape[0], weight.shape[0], *size)
        return output if bias is None else output + bias[:, None, None]
    output = []
    for part in image_parts(x, offset, weight):
        columns = _columns(
            at_least_float32(x[part]),
            at_least_float32(offset[part]),
            None if mask is None else mask[part],
            kernel,
            size,
            stride,
            padding,
            dilation,
            deform_groups,
        )
        output.append(_multiply(columns, weight, groups, deform_groups).view(-1, *size, weight.shape[0]))
    output = torch.cat(output).to(x.dtype)
    if bias is not None:
        output = output + bias
    return output.permute(0, 3, 1, 2).contiguous()


def image_parts(x: Tensor, offset: Tensor, weight: Tensor) -> list[slice]:
    """The batch in slices whose sampled values fit in memory."""
    values = x.shape[1] * weight.shape[2:].numel() * offset.shape[2:].numel()  # of one image
    images = max(1, _COLUMN_VALUES // max(1, values))
    return [slice(start, start + images) for start in range(0, x.shape[0], images)]


def _columns(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    deform_groups: int,
) -> Tensor:
    """Sampled values (B·H_out·W_out, deform_groups, kh·kw, C / deform_groups)."""
    batch, channels, height, width = x.shape
    taps = kernel[0] * kernel[1]
    offset = offset.reshape(batch, deform_groups, taps, 2, *size).permute(3, 0, 4, 5, 1, 2)  # (2, B, H_out, W_out, D, K)
    y = offset[0] + _regular(size[0], stride[0], padding[0], x)[:, None, None, None] + _kernel(kernel, 0, dilation[0], x)
    column = offset[1] + _regular(size[1], stride[1], padding[1], x)[:, None, None] + _kernel(kernel, 1, dilation[1], x)
    index, weight = bilinear_taps(y, column, height, width)  # (B, H_out, W_out, D, K, 4)
    if mask is not None:
        mask = mask.reshape(batch, deform_groups, taps, *size).permute(0, 3, 4, 1, 2)
        weight = weight * mask.to(weight.dtype)[..., None]
    image = torch.arange(batch, device=x.device)[:, None, None, None, None, None] * (height * width)
    index = (index + image) * deform_groups + torch.arange(deform_groups, device=x.device)[:, None, None]
    table = x.permute(0, 2, 3, 1).reshape(-1, channels // deform_groups)
    rows = weighted_rows(table, index.reshape(-1, 4), weight.reshape(-1, 4))
    return rows.view(-1, deform_groups, taps, channels // deform_groups)


def _regular(count: int, stride: int, padding: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device) * stride - padding


def _kernel(kernel: tuple[int, int], axis: int, dilation: int, like: Tensor) -> Tensor:
    """(kh·kw,): where each tap of the regular kernel lies along an axis."""
    taps = torch.arange(kernel[0] * kernel[1], device=like.device)
    return ((taps // kernel[1] if axis == 0 else taps % kernel[1]) * dilation).to(like.dtype)


def _multiply(columns: Tensor, weight: Tensor, groups: int, deform_groups: int) -> Tensor:
    """Columns (n, D, K, C/D) by weight (C_out, C/groups, kh, kw): (n, C_out)."""
    count, _, taps, per_group = columns.shape
    channels_out = weight.shape[0]
    weight = weight.to(columns.dtype)
    if groups == 1:
        matrix = weight.view(channels_out, deform_groups, per_group, taps).permute(1, 3, 2, 0)
        return columns.reshape(count, -1) @ matrix.reshape(-1, channels_out)
    columns = columns.permute(0, 1, 3, 2).reshape(count, groups, -1)  # (n, groups, C/groups·K)
    matrix = weight.view(groups, channels_out // groups, -1)
    return torch.einsum("ngk,gok->ngo", columns, matrix).reshape(count, channels_out)
