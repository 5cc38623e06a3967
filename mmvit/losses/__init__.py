"""Losses: free functions with shapes in their docstrings."""

from .boxes import centre_to_corners, corners_to_centre, inverse_sigmoid, iou_and_giou
from .classification import bce_loss, focal_loss, varifocal_loss
from .finite import NonFiniteError, check_finite

__all__ = [
    "NonFiniteError",
    "bce_loss",
    "centre_to_corners",
    "check_finite",
    "corners_to_centre",
    "focal_loss",
    "inverse_sigmoid",
    "iou_and_giou",
    "varifocal_loss",
]
