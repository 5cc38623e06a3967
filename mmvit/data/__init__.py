"""Datasets, transforms, samplers and the synthetic "shapes" data."""

from mmvit.data.annotations import CocoAnnotations, read_coco
from mmvit.data.classes import COCO_CATEGORY_IDS, COCO_CLASSES, COCO_PALETTE, make_palette, palette_for
from mmvit.data.coco import CocoDetection, check_dataset
from mmvit.data.folder import CocoFolder, find_coco_json
from mmvit.data.images import read_image
from mmvit.data.samplers import ResumableSampler
from mmvit.data.shapes import ensure_shapes, write_shapes
from mmvit.data.structures import DataSample
from mmvit.data.transforms import (
    Flip,
    IoUCrop,
    LoadAnnotations,
    LoadImage,
    PackDetInputs,
    PhotometricDistort,
    Resize,
    SanitizeBoxes,
    ZoomOut,
)

__all__ = [
    "COCO_CATEGORY_IDS",
    "COCO_CLASSES",
    "COCO_PALETTE",
    "CocoAnnotations",
    "CocoDetection",
    "CocoFolder",
    "DataSample",
    "Flip",
    "IoUCrop",
    "LoadAnnotations",
    "LoadImage",
    "PackDetInputs",
    "PhotometricDistort",
    "ResumableSampler",
    "Resize",
    "SanitizeBoxes",
    "ZoomOut",
    "check_dataset",
    "ensure_shapes",
    "find_coco_json",
    "make_palette",
    "palette_for",
    "read_coco",
    "read_image",
    "write_shapes",
]
