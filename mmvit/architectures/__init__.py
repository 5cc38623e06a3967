"""Detectors and segmenters: what joins backbone, neck and head."""

from .base import Architecture
from .factory import create_model, is_model, list_models, load_weights
from .preprocessor import RTDETRPreprocessor
from .rtdetr import RTDETR
from .seg_preprocessor import SegPreprocessor
from .segmenter import Segmenter, build_head

__all__ = [
    "RTDETR",
    "Architecture",
    "RTDETRPreprocessor",
    "SegPreprocessor",
    "Segmenter",
    "build_head",
    "create_model",
    "is_model",
    "list_models",
    "load_weights",
]
