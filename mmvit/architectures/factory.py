"""Models by name, and their weights."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from mmvit.errors import UserError, did_you_mean
from mmvit.weights import load_checkpoint, load_into

from .rtdetr import RTDETR, VARIANTS

_SHORT = {
    "r18": "r18vd",
    "r34": "r34vd",
    "r50m": "r50vd_m",
    "r50": "r50vd",
    "r101": "r101vd",
    "shapes": "shapes",
    "debug": "debug",
}
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


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows and that match the shell-style `pattern`, sorted."""
    return sorted(name for name in _models() if fnmatch.fnmatch(name, pattern))


def create_model(name: str, num_classes: int | None = None, **overrides: Any) -> RTDETR:
    """Build a model with random weights, e.g. ``create_model("rtdetr_r50")``.

    Args:
        name: see `list_models`; the paper's sizes ``rtdetrv2_s`` .. ``rtdetrv2_x`` are known, too.
        num_classes: object classes; 80 (COCO) if None.
        overrides: further arguments of the architecture.
    """
    table = _models()
    if name not in table:
        raise UserError(f"There is no model {name!r}.{did_you_mean(name, table)} `mmvit.list_models()` lists all of them.")
    return RTDETR(arch=table[name], num_classes=80 if num_classes is None else num_classes, **overrides)


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of ours, of the official code or of `transformers` into `model`, strictly; returns its meta data.

    Raises:
        UserError: an unreadable file, or keys, shapes or a class count that do not fit, naming both sides.
    """
    state, meta = load_checkpoint(path)
    load_into(model, model.convert(state), source=str(path))
    return meta
