"""Detectors and segmenters: what joins backbone, neck and head."""

from .factory import create_model, list_models, load_weights
from .preprocessor import RTDETRPreprocessor
from .rtdetr import RTDETR

__all__ = ["RTDETR", "RTDETRPreprocessor", "create_model", "list_models", "load_weights"]
