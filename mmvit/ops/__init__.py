"""Kernels of dense prediction in plain PyTorch, and what makes mmcv, mmdet and mmseg run without compiled ops.

The functions are batch-vectorised and differentiable, on CPU and CUDA. Compiled mmcv and torchvision do the work
where they are installed and work (`implementations` says so).
"""

from .deform_attn import ms_deform_attn
from .deform_conv import deform_conv2d, modulated_deform_conv2d
from .focal import sigmoid_focal_loss, softmax_focal_loss
from .openmmlab import prepare_openmmlab
from .rearrange import carafe, psa_mask
from .roi import roi_align, roi_pool
from .stand_in import MissingOpError, implementations, install_stand_ins
from .suppression import batched_nms, bbox_overlaps, nms, nms_match, soft_nms

__all__ = [
    "MissingOpError",
    "batched_nms",
    "bbox_overlaps",
    "carafe",
    "deform_conv2d",
    "implementations",
    "install_stand_ins",
    "modulated_deform_conv2d",
    "ms_deform_attn",
    "nms",
    "nms_match",
    "prepare_openmmlab",
    "psa_mask",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
    "softmax_focal_loss",
]
