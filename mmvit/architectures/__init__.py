"""Detectors and segmenters: what joins backbone, neck and head."""

from .base import Architecture
from .detector import Detector
from .factory import create_model, is_model, list_models, load_weights
from .mask_preprocessor import MaskPreprocessor
from .mask_segmenter import MaskSegmenter
from .preprocessor import DetPreprocessor, RTDETRPreprocessor
from .rtdetr import RTDETR
from .seg_preprocessor import SegPreprocessor
from .segmenter import Segmenter, build_head

__all__ = [
    "RTDETR",
    "Architecture",
    "DetPreprocessor",
    "Detector",
    "MaskPreprocessor",
    "MaskSegmenter",
    "RTDETRPreprocessor",
    "SegPreprocessor",
    "Segmenter",
    "build_head",
    "create_model",
    "is_model",
    "list_models",
    "load_weights",
]
