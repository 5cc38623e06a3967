"""Datasets, transforms, samplers, the synthetic "shapes" data, and the preparation of public data sets."""

from mmvit.data.annotations import CocoAnnotations, read_coco
from mmvit.data.classes import (
    ADE20K_CLASSES,
    ADE20K_PALETTE,
    ADE20K_THINGS,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_THINGS,
    COCO_CATEGORY_IDS,
    COCO_CLASSES,
    COCO_PALETTE,
    COCO_PANOPTIC_CATEGORY_IDS,
    COCO_PANOPTIC_CLASSES,
    COCO_PANOPTIC_PALETTE,
    COCO_THINGS,
    make_palette,
    palette_for,
)
from mmvit.data.coco import CocoDetection, check_dataset
from mmvit.data.folder import CocoFolder, find_coco_json
from mmvit.data.images import IMAGE_SUFFIXES, read_image
from mmvit.data.instance_masks import InstanceMasks
from mmvit.data.mask_check import check_masks
from mmvit.data.masks import MASK_FORMATS, MaskReader, read_mask
from mmvit.data.panoptic import semantic_from_panoptic
from mmvit.data.panoptic_dataset import PanopticDataset
from mmvit.data.panoptic_folder import PanopticFiles, find_panoptic
from mmvit.data.samplers import ResumableSampler
from mmvit.data.semantic import SemanticDataset
from mmvit.data.semantic_folder import SemanticFiles, find_semantic
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
from mmvit.data.transforms_panoptic import (
    LoadPanoptic,
    PackInstanceSegments,
    PackPanoptic,
    PackSemanticSegments,
    PanopticCopyPaste,
    RequireSegments,
)
from mmvit.data.transforms_semantic import LoadSemanticMask, PackSegInputs, SegPhotometricDistort, TestTimeAug
from mmvit.data.transforms_sizes import (
    FixedSizePad,
    RandomChoice,
    RandomChoiceResize,
    RandomCrop,
    RandomRangeCrop,
    RandomResize,
    ResizeToMultiple,
)

__all__ = [
    "ADE20K_CLASSES",
    "ADE20K_PALETTE",
    "ADE20K_THINGS",
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_PALETTE",
    "CITYSCAPES_THINGS",
    "COCO_CATEGORY_IDS",
    "COCO_CLASSES",
    "COCO_PALETTE",
    "COCO_PANOPTIC_CATEGORY_IDS",
    "COCO_PANOPTIC_CLASSES",
    "COCO_PANOPTIC_PALETTE",
    "COCO_THINGS",
    "IMAGE_SUFFIXES",
    "MASK_FORMATS",
    "CocoAnnotations",
    "CocoDetection",
    "CocoFolder",
    "DataSample",
    "FixedSizePad",
    "Flip",
    "InstanceMasks",
    "IoUCrop",
    "LoadAnnotations",
    "LoadImage",
    "LoadPanoptic",
    "LoadSemanticMask",
    "MaskReader",
    "PackDetInputs",
    "PackInstanceSegments",
    "PackPanoptic",
    "PackSegInputs",
    "PackSemanticSegments",
    "PanopticCopyPaste",
    "PanopticDataset",
    "PanopticFiles",
    "PhotometricDistort",
    "RandomChoice",
    "RandomChoiceResize",
    "RandomCrop",
    "RandomRangeCrop",
    "RandomResize",
    "RequireSegments",
    "Resize",
    "ResizeToMultiple",
    "ResumableSampler",
    "SanitizeBoxes",
    "SegPhotometricDistort",
    "SemanticDataset",
    "SemanticFiles",
    "TestTimeAug",
    "ZoomOut",
    "check_dataset",
    "check_masks",
    "ensure_shapes",
    "find_coco_json",
    "find_panoptic",
    "find_semantic",
    "make_palette",
    "palette_for",
    "read_coco",
    "read_image",
    "read_mask",
    "semantic_from_panoptic",
    "write_shapes",
]
