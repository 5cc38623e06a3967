"""Deformable attention and deformable convolution against loops and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.ops import deform_conv2d, modulated_deform_conv2d, ms_deform_attn
from mmvit.ops.deform_attn import _bilinear_grid

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(5, 7), (3, 4), (2, 2)]


def attention_inputs(points: list[int], dtype: torch.dtype = torch.float64, heads: int = 2, dim: int = 3) -> tuple[Tensor, ...]:
    """Value, flattened locations (some outside the map) and weights for a batch of two and four queries."""
    generator = torch.Generator().manual_seed(0)
    total = sum(points)
    value = torch.randn(2, sum(h * w for h, w in SHAPES), heads, dim, generator=generator, dtype=dtype)
    locations = torch.rand(2, 4, heads, total, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, 4, heads, total, generator=generator, dtype=dtype)
    return value, locations, weights


def at(plane: Tensor, y: float, x: float) -> Tensor:
    """plane (H, W, C) read bilinearly, zero outside."""
    result = plane.new_zeros(plane.shape[2])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                result += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return result


def attention_loop(value: Tensor, locations: Tensor, weights: Tensor, points: list[int], discrete: bool = False) -> Tensor:
    batch, queries, heads, total, _ = locations.shape
    level_of = [level for level, count in enumerate(points) for _ in range(count)]
    levels = value.split([h * w for h, w in SHAPES], 1)
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    for b in range(batch):
        for q in range(queries):
            for head in range(heads):
                for p in range(total):
                    height, width = SHAPES[level_of[p]]
                    plane = levels[level_of[p]][b, :, head].view(height, width, -1)
                    x, y = locations[b, q, head, p].tolist()
                    if discrete:
                        column, row = (min(max(int(v), 0), height - 1) for v in (x * width + 0.5, y * height + 0.5))
                        sample = plane[row, min(column, width - 1)]
                    else:
                        sample = at(plane, y * height - 0.5, x * width - 0.5)
                    output[b, q, head] += weights[b, q, head, p] * sample
    return output.flatten(2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["bilinear", "discrete"])
@pytest.mark.parametrize("points", [[2, 2, 2], [3, 1, 2]])
def test_attention_follows_the_loop(method: str, points: list[int], device: str) -> None:
    value, locations, weights = attention_inputs(points)
    expected = attention_loop(value, locations, weights, points, method == "discrete")
    result = ms_deform_attn(value.to(device), SHAPES, locations.to(device), weights.to(device), method, points)
    torch.testing.assert_close(result.cpu(), expected)


def test_attention_argument_forms_agree() -> None:
    value, locations, weights = attention_inputs([2, 2, 2])
    flat = ms_deform_attn(value, SHAPES, locations, weights, num_points=[2, 2, 2])
    by_level = ms_deform_attn(value, torch.tensor(SHAPES), locations.unflatten(3, (3, 2)), weights.unflatten(3, (3, 2)))
    lists = ms_deform_attn(value, SHAPES, locations.split(2, 3), weights.split(2, 3))
    torch.testing.assert_close(by_level, flat)
    torch.testing.assert_close(lists, flat)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(ms_deform_attn(strided, SHAPES, locations, weights, num_points=[2, 2, 2]), flat)


def test_attention_forms_of_the_kernel_agree() -> None:
    """The form for the CPU and that for CUDA and export."""
    value, locations, weights = attention_inputs([3, 1, 2])
    rows = ms_deform_attn(value, SHAPES, locations, weights, num_points=[3, 1, 2])
    torch.testing.assert_close(_bilinear_grid(value, SHAPES, locations, weights, [3, 1, 2]), rows)
    exported = torch.export.export(_Attention(), (value, locations, weights), strict=False)
    assert any("grid_sampler" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(value, locations, weights), rows)


class _Attention(torch.nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, SHAPES, locations, weights, num_points=[3, 1, 2])


def test_attention_gradients() -> None:
    inputs = [tensor.requires_grad_() for tensor in attention_inputs([1, 2, 1], heads=1, dim=2)]
    assert torch.autograd.gradcheck(lambda *t: ms_deform_attn(t[0], SHAPES, *t[1:], num_points=[1, 2, 1]), inputs)


def test_discrete_attention_gradients() -> None:
    value, locations, weights = (tensor.requires_grad_() for tensor in attention_inputs([1, 2, 1], heads=1, dim=2))

    def attend(value: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, SHAPES, locations, weights, "discrete", [1, 2, 1])

    assert torch.autograd.gradcheck(attend, (value, weights))
    attend(value, weights).sum().backward()
    assert locations.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_in_half_precision(dtype: torch.dtype) -> None:
    value, locations, weights = attention_inputs([2, 2, 2], torch.float32)
    result = ms_deform_attn(value.to(dtype), SHAPES, locations, weights, num_points=[2, 2, 2])
    assert result.dtype == dtype
    expected = ms_deform_attn(value.to(dtype).float(), SHAPES, locations, weights, num_points=[2, 2, 2])
    torch.testing.assert_close(result.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("method", ["bilinear", "discrete"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e30])
def test_attention_survives_broken_locations(method: str, bad: float) -> None:
    """No crash and no effect on other queries: training reports what was not finite, and where."""
    value, locations, weights = attention_inputs([2, 2, 2])
    good = ms_deform_attn(value, SHAPES, locations, weights, method, [2, 2, 2])
    locations[0, 1] = bad
    result = ms_deform_attn(value, SHAPES, locations, weights, method, [2, 2, 2])
    torch.testing.assert_close(result[1], good[1])
    torch.testing.assert_close(result[0, 2:], good[0, 2:])
    if method == "bilinear" and not math.isfinite(bad):
        assert not result[0, 1].isfinite().any()


def test_attention_errors_name_the_shapes() -> None:
    value, locations, weights = attention_inputs([2, 2, 2])
    with pytest.raises(ValueError, match="num_points"):
        ms_deform_attn(value, SHAPES, locations, weights)
    with pytest.raises(ValueError, match=r"value must be \(B, 51, heads, dim\)"):
        ms_deform_attn(value[:, 1:], SHAPES, locations, weights, num_points=[2, 2, 2])
    with pytest.raises(ValueError, match="sampling_locations"):
        ms_deform_attn(value, SHAPES, locations, weights, num_points=[2, 2, 3])
    with pytest.raises(ValueError, match="'bilinear' or 'discrete'"):
        ms_deform_attn(value, SHAPES, locations, weights, "nearest", [2, 2, 2])


GEOMETRIES = {  # kernel, stride, padding, dilation, groups, deform_groups
    "plain": ((3, 3), 1, 1, 1, 1, 1),
    "strided": ((3, 2), (2, 1), (1, 2), 1, 1, 2),
    "dilated groups": ((3, 3), 1, 2, 2, 2, 1),
    "everything": ((2, 3), (1, 2), (0, 1), (2, 1), 2, 4),
}


def conv_inputs(name: str, spread: float = 1.5, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], tuple]:
    """x, offset, mask, weight, bias and the geometry."""
    kernel, *geometry = GEOMETRIES[name]
    stride, padding, dilation = ((g, g) if isinstance(g, int) else g for g in geometry[:3])
    groups, deform_groups = geometry[3:]
    generator = torch.Generator().manual_seed(1)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip((6, 7), padding, dilation, kernel, stride)]
    taps = deform_groups * kernel[0] * kernel[1]
    shapes = [(2, 4, 6, 7), (2, 2 * taps, *size), (2, taps, *size), (6, 4 // groups, *kernel), (6,)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    tensors[1] = tensors[1] * spread
    tensors[2] = tensors[2].sigmoid()
    return tensors, (stride, padding, dilation, groups, deform_groups)


def conv_loop(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    channels_out, per_group, kh, kw = weight.shape
    output = x.new_zeros(x.shape[0], channels_out, *offset.shape[2:])
    offset = offset.view(x.shape[0], deform_groups, kh, kw, 2, *offset.shape[2:])
    mask = mask.view(x.shape[0], deform_groups, kh, kw, *mask.shape[2:])
    for b in range(x.shape[0]):
        for row in range(output.shape[2]):
            for column in range(output.shape[3]):
                for i in range(kh):
                    for j in range(kw):
                        sample = []
                        for d, plane in enumerate(x[b].chunk(deform_groups)):
                            dy, dx = offset[b, d, i, j, :, row, column].tolist()
                            y = row * stride[0] - padding[0] + i * dilation[0] + dy
                            z = column * stride[1] - padding[1] + j * dilation[1] + dx
                            sample.append(at(plane.permute(1, 2, 0), y, z) * mask[b, d, i, j, row, column])
                        for g, part in enumerate(torch.cat(sample).split(per_group)):
                            rows = slice(g * channels_out // groups, (g + 1) * channels_out // groups)
                            output[b, rows, row, column] += weight[rows, :, i, j] @ part
    return output + bias[:, None, None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolution_follows_the_loop(name: str, device: str) -> None:
    (x, offset, mask, weight, bias), geometry = conv_inputs(name)
    moved = [tensor.to(device) for tensor in (x, offset, mask, weight, bias)]
    torch.testing.assert_close(
        modulated_deform_conv2d(*moved, *geometry).cpu(), conv_loop(x, offset, mask, weight, bias, *geometry)
    )
    plain = conv_loop(x, offset, torch.ones_like(mask), weight, torch.zeros_like(bias), *geometry)
    torch.testing.assert_close(deform_conv2d(moved[0], moved[1], moved[3], *geometry).cpu(), plain)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolution_gradients(name: str) -> None:
    tensors, geometry = conv_inputs(name)
    x, offset, mask, weight, bias = (tensor.requires_grad_() for tensor in tensors)
    assert torch.autograd.gradcheck(
        lambda *t: modulated_deform_conv2d(*t, *geometry), (x, offset, mask, weight, bias), fast_mode=True
    )
    assert torch.autograd.gradcheck(lambda *t: deform_conv2d(*t, *geometry), (x, offset, weight), fast_mode=True)


def test_convolution_without_offsets_is_a_convolution() -> None:
    (x, offset, mask, weight, bias), geometry = conv_inputs("dilated groups", spread=0.0)
    expected = F.conv2d(x, weight, bias, *geometry[:4])
    torch.testing.assert_close(modulated_deform_conv2d(x, offset, torch.ones_like(mask), weight, bias, *geometry), expected)


def test_convolution_parts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, offset, mask, weight, bias), geometry = conv_inputs("plain")
    whole = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    monkeypatch.setattr("mmvit.ops.deform_conv._COLUMN_VALUES", 1)
    torch.testing.assert_close(modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry), whole)


def test_convolution_inputs() -> None:
    (x, offset, mask, weight, bias), geometry = conv_inputs("plain", dtype=torch.float32)
    expected = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(modulated_deform_conv2d(strided, offset, mask, weight, bias, *geometry), expected)
    low = modulated_deform_conv2d(x, offset.bfloat16(), mask, weight, bias, *geometry)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.5, rtol=0.1)
    assert modulated_deform_conv2d(x[:0], offset[:0], mask[:0], weight, bias, *geometry).shape == (0, 6, 6, 7)
    with pytest.raises(ValueError, match=r"offset must be \(2, 18, 6, 7\)"):
        deform_conv2d(x, offset[:, :-1], weight, *geometry)
    with pytest.raises(ValueError, match="groups=3"):
        deform_conv2d(x, offset, weight, 1, 1, 1, 3, 1)
    with pytest.raises(ValueError, match="too small"):
        deform_conv2d(x[:, :, :1, :1], offset, weight, 1, 0)
