"""Using a trained model: reading pictures of any kind, predicting, drawing.

The names are imported on first use, so that the command line stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvit.data.images import read_image
    from mmvit.inference.draw import draw_detections, draw_panoptic, draw_segmentation
    from mmvit.inference.predictor import Predictor
    from mmvit.inference.results import Detections, PanopticSegmentation, Segment, Segmentation

__all__ = [
    "Detections",
    "PanopticSegmentation",
    "Predictor",
    "Segment",
    "Segmentation",
    "draw_detections",
    "draw_panoptic",
    "draw_segmentation",
    "read_image",
]

_HOME = {
    "Detections": "inference.results",
    "PanopticSegmentation": "inference.results",
    "Predictor": "inference.predictor",
    "Segment": "inference.results",
    "Segmentation": "inference.results",
    "draw_detections": "inference.draw",
    "draw_panoptic": "inference.draw",
    "draw_segmentation": "inference.draw",
    "read_image": "data.images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmvit.inference' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmvit.{_HOME[name]}"), name)
