"""Heads: features to predictions and losses."""

from .detr_criterion import DETRCriterion
from .kmax_criterion import KMaXCriterion
from .kmax_decoder import KMaXDecoder
from .mask_criterion import MaskCriterion, MaskTarget
from .query_decoder import QueryDecoder
from .rtdetr_head import RTDETRHead, make_anchors, select_detections
from .vw_head import VWCityHead, VWHead

__all__ = [
    "DETRCriterion",
    "KMaXCriterion",
    "KMaXDecoder",
    "MaskCriterion",
    "MaskTarget",
    "QueryDecoder",
    "RTDETRHead",
    "VWCityHead",
    "VWHead",
    "make_anchors",
    "select_detections",
]
