"""Metrics. Those whose names end in ``Metric`` are what the runner calls, the others are plain."""

from mmvit.data.panoptic_files import write_panoptic
from mmvit.evaluation.boxes import ApScores, evaluate_boxes, evaluate_masks
from mmvit.evaluation.cityscapes import CityscapesInstanceMetric, evaluate_cityscapes_instances
from mmvit.evaluation.coco_metric import CocoBoxMetric
from mmvit.evaluation.gallery import WorstImages, draw_gallery
from mmvit.evaluation.panoptic import PanopticQuality, evaluate_panoptic, match_segments
from mmvit.evaluation.panoptic_metric import PanopticMetric
from mmvit.evaluation.segmentation import ConfusionMatrix, confusion_picture, count_pixels, picture_miou
from mmvit.evaluation.semantic_metric import SemanticMetric

__all__ = [
    "ApScores",
    "CityscapesInstanceMetric",
    "CocoBoxMetric",
    "ConfusionMatrix",
    "PanopticMetric",
    "PanopticQuality",
    "SemanticMetric",
    "WorstImages",
    "confusion_picture",
    "count_pixels",
    "draw_gallery",
    "evaluate_boxes",
    "evaluate_cityscapes_instances",
    "evaluate_masks",
    "evaluate_panoptic",
    "match_segments",
    "picture_miou",
    "write_panoptic",
]
