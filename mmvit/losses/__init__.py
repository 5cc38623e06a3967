"""Losses: free functions with shapes in their docstrings."""

from .boxes import centre_to_corners, corners_to_centre, inverse_sigmoid, iou_and_giou
from .classification import bce_loss, focal_loss, varifocal_loss
from .finite import NonFiniteError, check_finite
from .segmentation import IGNORE, pixel_accuracy, pixel_cross_entropy

__all__ = [
    "IGNORE",
    "NonFiniteError",
    "bce_loss",
    "centre_to_corners",
    "check_finite",
    "corners_to_centre",
    "focal_loss",
    "inverse_sigmoid",
    "iou_and_giou",
    "pixel_accuracy",
    "pixel_cross_entropy",
    "varifocal_loss",
]
