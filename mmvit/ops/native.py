"""Kernels that win over the plain PyTorch ones where they are installed and work: compiled mmcv, then torchvision.

A kernel "works" when a tiny call on the device in question gives what the PyTorch kernel gives. A library that is
missing, broken or built for another device is passed over; nothing here raises because of it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

STAND_IN_MARK = "mmvit_stand_in"


class Kernel(NamedTuple):
    source: str  # "compiled mmcv" or "torchvision"
    function: Callable


@functools.cache
def compiled_mmcv() -> ModuleType | None:
    """mmcv's compiled ``mmcv._ext``, or None where mmcv or its extension is absent or does not load."""
    loaded = sys.modules.get("mmcv._ext")
    if loaded is not None:
        return None if STAND_IN_MARK in vars(loaded) else loaded
    package = importlib.util.find_spec("mmcv")
    if package is None or importlib.machinery.PathFinder.find_spec("mmcv._ext", package.submodule_search_locations) is None:
        return None
    try:
        return importlib.import_module("mmcv._ext")
    except Exception:  # built for another torch, CUDA or Python: undefined symbols, missing libraries, aborted set-up
        sys.modules.pop("mmcv._ext", None)
        return None


def find(op: str, device: torch.device) -> Kernel | None:
    """The native kernel for `op` on `device`, with the signature of its adapter below, or None: use PyTorch.

    None as well while `torch.compile` or an export traces the call: they do better with PyTorch's own operators.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    return _find(op, torch.device(device).type)


def has_adapter(op: str) -> bool:
    """Whether `find` knows how to call `op` in some library."""
    return op in _MMCV or op in _TORCHVISION


def takes(tensor: Tensor) -> bool:
    """Whether native kernels exist for a tensor's dtype: half precision has them on accelerators only."""
    return tensor.dtype in (torch.float32, torch.float64) or (tensor.dtype == torch.float16 and tensor.device.type == "cuda")


@functools.cache
def _find(op: str, device_type: str) -> Kernel | None:
    for source, adapters in (("compiled mmcv", _MMCV), ("torchvision", _TORCHVISION)):
        function = adapters.get(op)
        if function is None or (source == "compiled mmcv" and compiled_mmcv() is None):
            continue
        try:
            if _works(op, function, device_type):
                return Kernel(source, function)
        except Exception:  # not installed, not loadable, not built for this device
            continue
    return None


def _works(op: str, function: Callable, device_type: str) -> bool:
    arguments, expected = _probe(op)
    arguments = [a.to(device_type) if isinstance(a, Tensor) else a for a in arguments]
    with torch.no_grad():
        result = function(*arguments)
    expected = torch.tensor(expected, dtype=torch.float32)
    return result.shape == expected.shape and torch.allclose(result.to("cpu", torch.float32), expected, atol=1e-4)


def _probe(op: str) -> tuple[list, list[float]]:
    """A tiny call of an adapter and the result it must give (shape included)."""
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    if op == "nms":
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        return [boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5, 0], [1, 2]
    if op == "roi_align":
        return [ramp, torch.tensor([[0.0, 1, 1, 3, 3]]), (1, 1), 1.0, 0, "avg", True], [[[[7.5]]]]
    if op == "roi_pool":
        return [ramp, torch.tensor([[0.0, 1, 1, 2, 2]]), (1, 1), 1.0], [[[[10.0]]]]
    if op == "deform_conv2d":
        return [ramp, torch.full((1, 2, 4, 4), 0.5), torch.ones(1, 1, 1, 1), 1, 0, 1, 1, 1], _shifted_ramp(1.0)
    if op == "modulated_deform_conv2d":
        return [
            ramp,
            torch.full((1, 2, 4, 4), 0.5),
            torch.full((1, 1, 4, 4), 2.0),
            torch.ones(1, 1, 1, 1),
            None,
            1,
            0,
            1,
            1,
            1,
        ], _shifted_ramp(2.0)
    if op == "ms_deform_attn":
        return [ramp.view(1, 16, 1, 1), [(4, 4)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)], [[[7.5]]]
    if op == "sigmoid_focal_loss":
        return [torch.zeros(1, 2), torch.tensor([0]), 2.0, 0.25, None], [[0.0433217, 0.1299651]]
    if op == "softmax_focal_loss":
        return [torch.zeros(1, 2), torch.tensor([0]), 2.0, 0.25, None], [0.0433217]
    raise KeyError(op)


def _shifted_ramp(scale: float) -> list:
    padded = torch.nn.functional.pad(torch.arange(16.0).view(1, 1, 4, 4), (0, 1, 0, 1))
    return (scale * torch.nn.functional.avg_pool2d(padded, 2, 1)).tolist()


def _torchvision() -> ModuleType:
    return importlib.import_module("torchvision.ops")


def _torchvision_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    return _torchvision().nms(boxes, scores, iou_threshold)


def _torchvision_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: str,
    aligned: bool,
) -> Tensor:
    return _torchvision().roi_align(features, rois, output_size, spatial_scale, sampling_ratio or -1, aligned)


def _torchvision_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    return _torchvision().deform_conv2d(x, offset, weight, None, stride, padding, dilation)


def _torchvision_modulated(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    return _torchvision().deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


def _mmcv() -> ModuleType:
    return importlib.import_module("mmcv.ops")


def _mmcv_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    return compiled_mmcv().nms(boxes, scores, iou_threshold=float(iou_threshold), offset=int(offset))


def _mmcv_ms_deform_attn(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    function = importlib.import_module("mmcv.ops.multi_scale_deform_attn").MultiScaleDeformableAttnFunction
    sizes = torch.tensor(shapes, device=value.device)
    areas = sizes.prod(1)
    return function.apply(
        value.contiguous(), sizes, areas.cumsum(0) - areas, locations.contiguous(), weights.contiguous(), value.shape[0]
    )


_MMCV: dict[str, Callable] = {
    "nms": _mmcv_nms,
    "roi_align": lambda x, rois, *rest: _mmcv().roi_align(x.contiguous(), rois.contiguous(), *rest),
    "roi_pool": lambda x, rois, *rest: _mmcv().roi_pool(x.contiguous(), rois.contiguous(), *rest),
    "deform_conv2d": lambda x, offset, weight, *rest: _mmcv().deform_conv2d(
        x.contiguous(), offset.contiguous(), weight, *rest, False, x.shape[0]
    ),
    "modulated_deform_conv2d": lambda x, offset, mask, *rest: _mmcv().modulated_deform_conv2d(
        x.contiguous(), offset.contiguous(), mask.contiguous(), *rest
    ),
    "ms_deform_attn": _mmcv_ms_deform_attn,
    "sigmoid_focal_loss": lambda x, target, gamma, alpha, weight: _mmcv().sigmoid_focal_loss(
        x.contiguous(), target, gamma, alpha, weight, "none"
    ),
    "softmax_focal_loss": lambda x, target, gamma, alpha, weight: _mmcv().softmax_focal_loss(
        x.contiguous(), target, gamma, alpha, weight, "none"
    ),
}

_TORCHVISION: dict[str, Callable] = {
    "nms": _torchvision_nms,
    "roi_align": _torchvision_roi_align,
    "deform_conv2d": _torchvision_deform_conv2d,
    "modulated_deform_conv2d": _torchvision_modulated,
}
