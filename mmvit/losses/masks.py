"""Losses and costs of masks at sampled points (Mask2Former, arXiv 2112.01527, section 3.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sample_points(masks: Tensor, points: Tensor) -> Tensor:
    """Read maps bilinearly; zero outside.

    Args:
        masks: (n, h, w).
        points: (n, P, 2), x and y from 0 to 1 over the whole map, corners not aligned.

    Returns:
        (n, P).
    """
    return F.grid_sample(masks[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def pairwise_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the points, of each pair: (Q, P) logits, (n, P) targets -> (Q, n)."""
    return (F.softplus(-logits) @ targets.T + F.softplus(logits) @ (1 - targets).T) / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum p g + 1) / (sum p + sum g + 1) of each pair: (Q, P) logits, (n, P) targets -> (Q, n)."""
    p = logits.sigmoid()
    return 1 - (2 * p @ targets.T + 1) / (p.sum(1)[:, None] + targets.sum(1) + 1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum p g + 1) / (sum p + sum g + 1) of each row: (n, P), (n, P) -> (n,)."""
    p = logits.sigmoid()
    return 1 - (2 * (p * targets).sum(1) + 1) / (p.sum(1) + targets.sum(1) + 1)
