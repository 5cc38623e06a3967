"""Heads: features to predictions and losses."""

from .detr_criterion import DETRCriterion
from .rtdetr_head import RTDETRHead, make_anchors, select_detections
from .vw_head import VWCityHead, VWHead

__all__ = ["DETRCriterion", "RTDETRHead", "VWCityHead", "VWHead", "make_anchors", "select_detections"]
