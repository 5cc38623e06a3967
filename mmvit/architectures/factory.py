"""Models by name, and their weights."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

from torch import nn

from mmvit.backbones import find_backbone, list_backbones
from mmvit.data.classes import ADE20K_THINGS
from mmvit.errors import UserError, did_you_mean
from mmvit.weights import load_checkpoint, load_into

from .base import Architecture
from .detector import Detector
from .detector_settings import ARCHS as DETECTORS
from .mask_segmenter import ARCHS, MaskSegmenter
from .rtdetr import RTDETR, VARIANTS
from .segmenter import Segmenter

_SHORT = {
    "r18": "r18vd",
    "r34": "r34vd",
    "r50m": "r50vd_m",
    "r50": "r50vd",
    "r101": "r101vd",
    "shapes": "shapes",
    "debug": "debug",
}
#: The small VWFormer whose weights are part of the package, trained on the synthetic shapes.
SHAPES_SEGMENTER: dict[str, Any] = dict(backbone="mit_debug", num_classes=12, eval_size=(192, 192))
_HGNET = {name: name for name in VARIANTS if name.startswith("hgnet")}


def _models() -> dict[str, str]:
    """Model name -> RT-DETR variant."""
    table = {f"rtdetr_{short}": arch for short, arch in _SHORT.items()}
    for short, arch in ({k: v for k, v in _SHORT.items() if k.startswith("r")} | _HGNET).items():
        table[f"rtdetrv2_{short}"] = f"v2_{arch}"
    for short in ("r18", "r34", "r50m", "r50"):
        table[f"rtdetrv2_{short}_dsp"] = f"v2_{_SHORT[short]}_dsp"
    for points in (1, 2, 3):
        table[f"rtdetrv2_r18_sp{points}"] = f"v2_r18vd_sp{points}"
    for size, short in {"s": "r18", "m": "r34", "m*": "r50m", "l": "r50", "x": "r101"}.items():
        table[f"rtdetrv2_{size}"] = f"v2_{_SHORT[short]}"
    table |= {
        f"{name}_obj365": arch for name, arch in list(table.items()) if name in ("rtdetr_r18", "rtdetr_r50", "rtdetr_r101")
    }
    return table


#: Semantic methods, and the classes of the data sets that a name may end in.
SEMANTIC = ("upernet", "segformer", "vwformer")
DATASETS = {"ade20k": 150, "cityscapes": 19}
#: Classes, things and longest and shortest side in evaluation of the data sets of mask classifiers.
MASK_DATASETS: dict[str, dict[str, Any]] = {
    "coco": dict(num_classes=133, things=range(80), eval_size=(1333, 800)),
    "ade20k": dict(num_classes=150, things=ADE20K_THINGS, eval_size=(2048, 512)),
    "cityscapes": dict(num_classes=19, things=range(11, 19), eval_size=(2048, 1024)),
}
#: What kMaX-DeepLab changes with the data set: input size, thresholds, and on Cityscapes one more map and more queries.
KMAX_DATASETS: dict[str, dict[str, Any]] = {
    "coco": dict(data_preprocessor=dict(size=(1281, 1281)), eval_size=(1281, 1281)),
    "ade20k": dict(
        data_preprocessor=dict(size=(1281, 1281)),
        eval_size=(1281, 1281),
        head=dict(drop_path=0.0),
        test_cfg=dict(thing_threshold=0.4, stuff_threshold=0.4),
    ),
    "cityscapes": dict(
        data_preprocessor=dict(size=(1025, 2049)),
        eval_size=(2049, 1025),
        stem_map=True,
        neck=dict(
            widths=(512, 256, 128, 64, 32),
            depths=(1, 5, 1, 1, 1),
            kinds=("axial", "axial", "bottleneck", "bottleneck", "bottleneck"),
        ),
        head=dict(num_queries=256),
        auxiliary_head="coarse",
        criterion=dict(num_points=(4096, None), temperatures=(0.6, 1.0)),
        test_cfg=dict(thing_threshold=0.5, stuff_threshold=0.3, overlap_threshold=0.9, mask_power=0.0),
    ),
}
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "xl": "xlarge"}  # the papers' short forms


def _backbone(name: str) -> str:
    """The backbone's full name: ``swin_t`` -> ``swin_tiny``, ``r50`` -> ``resnet_50``."""
    name = re.sub(r"^r(\d+)$", r"resnet_\1", name)
    family, _, size = name.rpartition("_")
    long = f"{family}_{_SIZES[size]}" if size in _SIZES else name
    names = list_backbones()
    if long in names:
        return long
    find_backbone(name)
    plain = name.replace("_", "").lower()
    return next(known for known in names if known.replace("_", "").lower() == plain)


def _semantic(name: str) -> dict[str, Any] | None:
    """Settings of `Segmenter` for ``<method>_<backbone>[_<data set>]``; None for a name of another form."""
    if name == "vwformer_shapes":
        return dict(arch="vwformer", **SHAPES_SEGMENTER)
    match = re.fullmatch(rf"({'|'.join(SEMANTIC)})_(\w+?)(?:_({'|'.join(DATASETS)}))?", name)
    if match is None:
        return None
    method, backbone, data = match.groups()
    arch = "vwformer_city" if method == "vwformer" and data == "cityscapes" else method
    settings = dict(arch=arch, backbone=_backbone(backbone), num_classes=DATASETS.get(data, 150))
    return settings | dict(eval_size=(2048, 1024)) if data == "cityscapes" else settings


def _mask_classifier(name: str) -> dict[str, Any] | None:
    """Settings of `MaskSegmenter` for ``<method>_<backbone>[_<data set>[_<sem|pan|ins>]]``; None for a name of another form."""
    sets = "|".join(MASK_DATASETS)
    match = re.fullmatch(rf"({'|'.join(ARCHS)})_(\w+?)(?:_({sets})(?:_(sem|pan|ins))?)?", name)
    if match is None:
        return None
    arch, backbone, data, kind = match.groups()
    data = data or ("ade20k" if arch.startswith("vw") else "coco")
    settings = dict(arch=arch, backbone=dict(name=_backbone(backbone)), **MASK_DATASETS[data])
    if backbone == "r50" and (arch, data) in (("mask2former", "coco"), ("mask2former", "ade20k"), ("pem", "ade20k")):
        settings["backbone"]["freeze_norm"] = True
    if kind:
        settings["outputs"] = {"sem": ("semantic",), "pan": ("panoptic",), "ins": ("instance",)}[kind]
    if kind == "ins":
        settings.update(num_classes=len(settings["things"]), things=None)
    swin = re.match(r"swin_(base|large)", settings["backbone"]["name"]) if arch == "mask2former" else None
    if swin and swin[1] == "large" and kind != "sem":
        settings["head"] = dict(num_queries=200)
    if data == "ade20k" and (swin or kind in ("pan", "ins")):
        settings["eval_size"] = (2560, 640)
    return settings | (KMAX_DATASETS[data] if arch == "kmax" else {})


def _detector(name: str) -> dict[str, Any] | None:
    """Settings of `Detector` for ``<method>_<backbone>[_coco]``; None for a name of another form."""
    for arch in sorted(DETECTORS, key=len, reverse=True):
        if name.startswith(f"{arch}_"):
            return dict(arch=arch, backbone=_backbone(name.removeprefix(f"{arch}_").removesuffix("_coco")), num_classes=80)
    return None


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows and that match the shell-style `pattern`, sorted.

    A semantic method pairs with every backbone; ``_ade20k`` (the default) or ``_cityscapes`` may follow a name. So do the
    detectors of `Detector`, with ``_coco``.
    """
    methods = (*SEMANTIC, *ARCHS, *DETECTORS)
    semantic = {f"{method}_{backbone}" for method in methods for backbone in list_backbones()} | {"vwformer_shapes"}
    return sorted(name for name in {*_models(), *semantic} if fnmatch.fnmatch(name, pattern))


def is_model(name: str) -> bool:
    """Whether `create_model` knows `name`."""
    try:
        return (
            name in _models()
            or _semantic(name) is not None
            or _mask_classifier(name) is not None
            or _detector(name) is not None
        )
    except UserError:
        return False


def create_model(name: str, num_classes: int | None = None, **overrides: Any) -> Architecture:
    """Build a model with random weights, e.g. ``create_model("rtdetr_r50")`` or ``create_model("mask_rcnn_swin_tiny")``.

    Args:
        name: see `list_models`; the paper's sizes ``rtdetrv2_s`` .. ``rtdetrv2_x`` and ``swin_t`` for ``swin_tiny`` are
            known, too.
        num_classes: classes; those of COCO (80), or of the data set that the name ends in (ADE20K if none), if None.
        overrides: further arguments of the architecture.
    """
    table = _models()
    if name in table:
        return RTDETR(arch=table[name], num_classes=80 if num_classes is None else num_classes, **overrides)
    kinds = ((_semantic, Segmenter), (_mask_classifier, MaskSegmenter), (_detector, Detector))
    settings, cls = next(((found, cls) for read, cls in kinds if (found := read(name)) is not None), (None, None))
    if settings is None:
        known = list_models()
        raise UserError(f"There is no model {name!r}.{did_you_mean(name, known)} `mmvit.list_models()` lists all of them.")
    if num_classes is not None:
        settings["num_classes"] = num_classes
    return cls(**{**settings, **overrides})


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of ours, of the official code or of `transformers` into `model`, strictly; returns its meta data.

    Raises:
        UserError: an unreadable file, or keys, shapes or a class count that do not fit, naming both sides.
    """
    state, meta = load_checkpoint(path)
    load_into(model, model.convert(state), source=str(path))
    return meta
