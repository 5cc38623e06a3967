"""Per-class sigmoid losses, summed. Shapes: logits and targets (..., classes) -> scalar."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def varifocal_loss(logits: Tensor, quality: Tensor, positive: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss (arXiv 2008.13367, equation 2) with the quality of the box as target.

    Args:
        quality: target of each positive entry (for example its IoU), 0 elsewhere.
        positive: 1 at the matched (query, class), 0 elsewhere.
    """
    weight = alpha * logits.detach().sigmoid().pow(gamma) * (1 - positive) + quality
    return F.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction="sum")


def focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5); `positive` holds 0 and 1."""
    probability = logits.sigmoid()
    truth = probability * positive + (1 - probability) * (1 - positive)
    balance = alpha * positive + (1 - alpha) * (1 - positive)
    loss = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (balance * (1 - truth).pow(gamma) * loss).sum()


def bce_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Binary cross-entropy with 0/1 targets."""
    return F.binary_cross_entropy_with_logits(logits, positive, reduction="sum")
