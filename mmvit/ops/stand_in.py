"""A module ``mmcv._ext`` made of the PyTorch kernels, for an mmcv that was installed without compiled ops."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch

from mmvit.errors import UserError

from . import native
from .mmcv_ext import FUNCTIONS


class MissingOpError(UserError, NotImplementedError):
    """An op of mmcv that is neither compiled here nor written in PyTorch."""


def install_stand_ins() -> None:
    """Make ``import mmcv.ops`` work: where mmcv has no working ``mmcv._ext``, put one made of PyTorch kernels in its place.

    Call it before anything imports ``mmcv.ops``, mmdet or mmseg; a second call does nothing. Compiled ops that load
    are left alone. An op without a PyTorch kernel raises `MissingOpError` when it is called, not before.

    Raises:
        UserError: mmcv is not installed.
    """
    if "mmcv._ext" in sys.modules or native.compiled_mmcv() is not None:
        return
    if importlib.util.find_spec("mmcv") is None:
        raise UserError("mmcv is not installed. Install it with: pip install onedl-mmcv")
    late = sorted(name for name in sys.modules if name.startswith(("mmdet.models", "mmseg.models")) and name.count(".") == 1)
    if late:
        warnings.warn(
            f"{', '.join(late)} was imported before mmvit.ops.prepare_openmmlab(): its ops that need mmcv.ops will "
            "raise when called. Call prepare_openmmlab() first.",
            RuntimeWarning,
            stacklevel=2,
        )
    module = _build_module()
    sys.modules["mmcv._ext"] = module
    if "mmcv" in sys.modules:
        sys.modules["mmcv"]._ext = module


class _Loader(importlib.abc.Loader):
    """Says where the module comes from, for those who ask its spec."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return sys.modules.get(spec.name) or _build_module()

    def exec_module(self, module: ModuleType) -> None:
        """The module is complete when it is created."""


def _build_module() -> ModuleType:
    spec = importlib.machinery.ModuleSpec("mmcv._ext", _Loader(), origin="mmvit.ops.stand_in")
    module = ModuleType(spec.name, "PyTorch kernels in place of mmcv's compiled ops, by mmvit.ops.")
    module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, "mmcv"
    setattr(module, native.STAND_IN_MARK, True)
    for name, function in FUNCTIONS.items():
        setattr(module, name, function)

    def missing(name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing_op(name)

    module.__getattr__ = missing
    return module


def _missing_op(name: str) -> Callable:
    def raise_missing(*args: object, **kwargs: object) -> NoReturn:
        raise MissingOpError(
            f"The op {name!r} of mmcv is not compiled in this installation and mmvit has no PyTorch version "
            f"of it. Install compiled mmcv with: {install_command()}"
        )

    raise_missing.__name__ = name
    return raise_missing


def install_command() -> str:
    """The shell command that puts a compiled mmcv in the place of the installed one."""
    installed = [name for name in ("onedl-mmcv", "mmcv-lite") if _is_installed(name)]
    remove = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    return f'{remove}pip install -U openmim && mim install "mmcv>=2.0.0"'


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# op of this package -> what implements it elsewhere in mmcv: the functions of mmcv._ext
_OPS = {
    "nms": ("nms",),
    "soft_nms": ("softnms",),
    "nms_match": ("nms_match",),
    "bbox_overlaps": ("bbox_overlaps",),
    "roi_align": ("roi_align_forward", "roi_align_backward"),
    "roi_pool": ("roi_pool_forward", "roi_pool_backward"),
    "ms_deform_attn": ("ms_deform_attn_forward", "ms_deform_attn_backward"),
    "deform_conv2d": ("deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"),
    "modulated_deform_conv2d": ("modulated_deform_conv_forward", "modulated_deform_conv_backward"),
    "sigmoid_focal_loss": ("sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"),
    "softmax_focal_loss": ("softmax_focal_loss_forward", "softmax_focal_loss_backward"),
    "carafe": ("carafe_forward", "carafe_backward", "carafe_naive_forward", "carafe_naive_backward"),
    "masked_conv2d": ("masked_im2col_forward", "masked_col2im_forward"),
    "psa_mask": ("psamask_forward", "psamask_backward"),
}


def implementations(device: str | torch.device | None = None) -> dict[str, str]:
    """Which implementation of each op is used: "compiled mmcv", "torchvision", "PyTorch" or "missing".

    Args:
        device: the device asked about; by default CUDA where there is one, else the CPU.

    Returns:
        The ops of this package first; then, in alphabetical order, what else the installed mmcv wants from its compiled
        extension, by file of ``mmcv/ops`` (by function where the file's other functions are there).
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    elsewhere = "missing" if native.compiled_mmcv() is None else "compiled mmcv"
    used = {}
    for op in _OPS:
        found = native.find(op, device) if native.has_adapter(op) else None
        fallback = "PyTorch" if native.has_adapter(op) or elsewhere == "missing" else elsewhere
        used[op] = fallback if found is None else found.source
    return used | dict.fromkeys(_other_ops(), elsewhere)


def _other_ops() -> list[str]:
    package = importlib.util.find_spec("mmcv")
    folders = package.submodule_search_locations if package is not None else []
    files = [file for folder in folders for file in Path(folder, "ops").glob("*.py")]
    others: list[str] = []
    for file in files:
        requested = requested_functions(file.read_text(encoding="utf-8"))
        absent = [name for name in requested if name not in FUNCTIONS]
        others += [file.stem] if len(absent) == len(requested) and requested else absent
    return sorted(others)


def requested_functions(source: str) -> list[str]:
    """Names that a file of ``mmcv/ops`` requests from the extension in its calls of ``load_ext``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if getattr(call.func, "attr", "") == "load_ext" and len(call.args) == 2]
    return [name for call in loads for name in ast.literal_eval(call.args[1])]
