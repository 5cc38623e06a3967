"""RoIAlign and RoIPool against loops over bins and samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmvit.ops import roi_align, roi_pool

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 11.7, 14.4],  # inside
        [1, 0.0, 0.0, 15.0, 12.0],  # the whole map
        [0, -6.2, -3.9, 4.8, 5.1],  # partly outside
        [1, -40.0, -40.0, -20.0, -20.0],  # wholly outside
        [1, 10.2, 7.7, 31.9, 26.3],
        [0, 5.5, 5.5, 5.5, 5.5],  # a point
        [1, 3.1, 4.2, 3.9, 9.7],  # a sliver
        [0, -50.0, -70.0, 90.0, 60.0],  # far larger than the map
    ]
)


def features(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 12, 15, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def interpolate(plane: Tensor, y: float, x: float) -> Tensor:
    """plane (C, H, W) at one position; zero more than a pixel outside."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.shape[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return (
        (1 - dy) * (1 - dx) * plane[:, top, left]
        + (1 - dy) * dx * plane[:, top, right]
        + dy * (1 - dx) * plane[:, bottom, left]
        + dy * dx * plane[:, bottom, right]
    )


def align_loop(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, mode: str, aligned: bool) -> Tensor:
    output = x.new_zeros(len(rois), x.shape[1], *size)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
        extent = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        bin_h, bin_w = extent[0] / size[0], extent[1] / size[1]
        grid_h, grid_w = (ratio, ratio) if ratio else (math.ceil(bin_h), math.ceil(bin_w))
        for i in range(size[0]):
            for j in range(size[1]):
                rows = [y1 + (i + (a + 0.5) / grid_h) * bin_h for a in range(grid_h)]
                columns = [x1 + (j + (b + 0.5) / grid_w) * bin_w for b in range(grid_w)]
                samples = [interpolate(x[int(image)], row, column) for row in rows for column in columns]
                if samples:
                    stack = torch.stack(samples)
                    output[r, :, i, j] = stack.mean(0) if mode == "avg" else stack.amax(0)
    return output


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize(("ratio", "scale", "size"), [(0, 1.0, (2, 3)), (0, 0.5, (7, 7)), (2, 1.0, (3, 2)), (1, 0.25, (2, 2))])
def test_roi_align_follows_the_loop(
    ratio: int, scale: float, size: tuple[int, int], mode: str, aligned: bool, device: str
) -> None:
    x, rois = features(), ROIS.double()
    expected = align_loop(x, rois, size, scale, ratio, mode, aligned)
    torch.testing.assert_close(roi_align(x.to(device), rois.to(device), size, scale, ratio, mode, aligned).cpu(), expected)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_gradient(mode: str, ratio: int) -> None:
    x = features()[:, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, ROIS.double(), (2, 2), 0.7, ratio, mode), x)


def test_roi_align_parts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """RoIs are handled in parts that fit in memory; the cut must not show."""
    x, rois = features(), ROIS.double().repeat(5, 1)
    whole = [roi_align(x, rois, 3, pool_mode=mode) for mode in ("avg", "max")] + [roi_pool(x, rois, 3)]
    monkeypatch.setattr("mmvit.ops.roi._TAPS", 500)
    monkeypatch.setattr("mmvit.ops.roi._VALUES", 500)
    parts = [roi_align(x, rois, 3, pool_mode=mode) for mode in ("avg", "max")] + [roi_pool(x, rois, 3)]
    torch.testing.assert_close(parts, whole)


def test_roi_align_inputs() -> None:
    x = features(torch.float32)
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(roi_align(strided, ROIS, 3), roi_align(x, ROIS, 3))
    half = roi_align(x.half(), ROIS.half(), 3)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), roi_align(x.half().float(), ROIS.half().float(), 3), atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match="image index"):
        roi_align(x, ROIS[:, 1:], 3)
    with pytest.raises(ValueError, match="'avg' or 'max'"):
        roi_align(x, ROIS, 3, pool_mode="sum")


def test_rois_that_are_not_finite_give_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmvit.ops.native.find", lambda op, device: None)  # compiled kernels may raise instead
    x = features(torch.float32)
    broken = ROIS.clone()
    broken[0, 1], broken[1, 3] = math.nan, math.inf
    result = roi_align(x, broken, 3)
    assert result[:2].abs().max() == 0
    torch.testing.assert_close(result[2:], roi_align(x, ROIS[2:], 3))


@pytest.mark.parametrize("function", [roi_align, roi_pool])
def test_no_rois_leave_a_zero_gradient(function) -> None:
    x = features().requires_grad_()
    output = function(x, torch.zeros(0, 5, dtype=x.dtype), (2, 3))
    assert output.shape == (0, 3, 2, 3)
    output.sum().backward()
    assert x.grad.abs().max() == 0


def pool_loop(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    output = x.new_zeros(len(rois), x.shape[1], *size)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        for i in range(size[0]):
            for j in range(size[1]):
                bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
                rows = slice(max(math.floor(y1 + i * bin_h), 0), max(math.ceil(y1 + (i + 1) * bin_h), 0))
                columns = slice(max(math.floor(x1 + j * bin_w), 0), max(math.ceil(x1 + (j + 1) * bin_w), 0))
                window = x[int(image), :, rows, columns].flatten(1)
                if window.shape[1]:
                    output[r, :, i, j] = window.amax(1)
    return output


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "scale"), [((2, 3), 1.0), ((7, 7), 0.5)])
def test_roi_pool_follows_the_loop(size: tuple[int, int], scale: float, device: str) -> None:
    x, rois = features(), ROIS.double()
    torch.testing.assert_close(roi_pool(x.to(device), rois.to(device), size, scale).cpu(), pool_loop(x, rois, size, scale))


def test_roi_pool_gradient() -> None:
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, ROIS.double(), (2, 2), 0.7), features()[:, :1].requires_grad_())
