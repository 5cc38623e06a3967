"""Heads: features to predictions and losses."""

from .detr_criterion import DETRCriterion
from .rtdetr_head import RTDETRHead, make_anchors, select_detections

__all__ = ["DETRCriterion", "RTDETRHead", "make_anchors", "select_detections"]
