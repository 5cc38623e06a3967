"""Losses of semantic segmentation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def pixel_cross_entropy(logits: Tensor, labels: Tensor, average_ignored: bool = True) -> Tensor:
    """Cross-entropy per pixel, averaged.

    Args:
        logits: (N, C, H, W).
        labels: class indices (N, H, W), 255 where there is none.
        average_ignored: divide by all pixels, as mmseg's recipes do, instead of by those with a label.

    Returns:
        a scalar; 0 (with gradient 0) where no pixel has a label.
    """
    labels = labels.long()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    count = labels.numel() if average_ignored else (labels != IGNORE).sum().clamp(min=1)
    return total / count


def pixel_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share (0 to 1) of labelled pixels whose largest logit is that of their class; shapes as `pixel_cross_entropy`."""
    labelled = labels != IGNORE
    right = (logits.argmax(1) == labels) & labelled
    return right.sum() / labelled.sum().clamp(min=1)
