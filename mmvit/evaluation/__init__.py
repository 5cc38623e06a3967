"""Metrics. `evaluate_boxes` is the plain function, `CocoBoxMetric` what the runner calls."""

from mmvit.evaluation.boxes import BoxScores, evaluate_boxes
from mmvit.evaluation.coco_metric import CocoBoxMetric

__all__ = ["BoxScores", "CocoBoxMetric", "evaluate_boxes"]
