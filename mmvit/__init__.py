"""mmvit: vision backbones in detectors and segmenters, on the OpenMMLab stack.

``import mmvit`` is cheap: the names below are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvit.architectures import create_model, list_models
    from mmvit.backbones import create_backbone, list_backbones
    from mmvit.inference import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "create_backbone", "create_model", "list_backbones", "list_models"]

_HOME = {
    "create_backbone": "mmvit.backbones",
    "list_backbones": "mmvit.backbones",
    "create_model": "mmvit.architectures",
    "list_models": "mmvit.architectures",
    "Predictor": "mmvit.inference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmvit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
