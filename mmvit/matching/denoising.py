"""Contrastive denoising queries (DINO, arXiv 2203.03605, section 3.3), as RT-DETR uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmvit.losses import centre_to_corners, corners_to_centre, inverse_sigmoid

from .hungarian import Match, Target


class Draws(Protocol):
    """Where the noise comes from."""

    def uniform(self, shape: tuple[int, ...]) -> Tensor: ...

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor: ...


@dataclass(frozen=True)
class TorchDraws:
    """Noise from PyTorch's global random state on `device`."""

    device: torch.device

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, device=self.device)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, shape, device=self.device)


@dataclass(frozen=True)
class Denoising:
    """K denoising queries that stand before the Q matching queries.

    Attributes:
        labels: (B, K) class fed to the embedding; `num_classes` marks padding.
        box_logits: (B, K, 4) noisy centre boxes before the sigmoid.
        mask: (K + Q, K + Q) bool, True = may not attend.
        matches: for each image the positive queries and the objects that they stand for.
        groups: number of groups, by which the losses of this part are divided.
    """

    labels: Tensor
    box_logits: Tensor
    mask: Tensor
    matches: list[Match]
    groups: int


def make_denoising(
    targets: list[Target],
    num_classes: int,
    num_queries: int,
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    *,
    draws: Draws,
    empty_group: bool = False,
) -> Denoising | None:
    """Noisy copies of the objects: per group, as many positives as the largest image has objects, then as many negatives.

    Args:
        num_denoising: positives over all groups (at least one group is made).
        label_noise: a real object's label is redrawn with probability `label_noise` / 2.
        box_noise: corners move by up to 1 (positives) or 1 to 2 (negatives) half sides, times this.
        empty_group: without any object, make one group of a centred dummy box that is never positive (RT-DETRv2)
            instead of returning None.
    """
    if num_denoising <= 0:
        return None
    counts = [len(t.labels) for t in targets]
    if not any(counts) and not empty_group:
        return None
    device, batch = targets[0].labels.device, len(targets)
    slots = max(counts) or 1
    groups = max(1, num_denoising // slots)
    labels = torch.full((batch, slots), num_classes, device=device)
    boxes = torch.zeros(batch, slots, 4, device=device, dtype=targets[0].boxes.dtype)
    if not any(counts):
        groups = 1
        boxes[:] = torch.tensor([0.5, 0.5, 0.1, 0.1], device=device)
    for i, target in enumerate(targets):
        labels[i, : counts[i]], boxes[i, : counts[i]] = target.labels, target.boxes
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    negative = (torch.arange(2 * slots * groups, device=device) // slots) % 2  # (K,) 1 in the second half of each group

    if label_noise > 0:
        flip = draws.uniform(tuple(labels.shape)) < label_noise * 0.5
        labels = torch.where(flip & (labels < num_classes), draws.integers(0, num_classes, tuple(labels.shape)), labels)
    sign = draws.integers(0, 2, tuple(boxes.shape)) * 2 - 1
    size = draws.uniform(tuple(boxes.shape)).to(boxes.dtype) + negative[:, None]
    corners = centre_to_corners(boxes) + sign * size * (boxes[..., 2:] * 0.5).repeat(1, 1, 2) * box_noise
    noisy = corners_to_centre(corners.clamp(0, 1))

    first = torch.arange(groups, device=device)[:, None] * 2 * slots  # first query of each group
    matches = []
    for count in counts:
        objects = torch.arange(count, device=device)
        matches.append(((first + objects).flatten(), objects.repeat(groups)))
    return Denoising(labels, inverse_sigmoid(noisy), _attention_mask(slots, groups, num_queries, device), matches, groups)


def _attention_mask(slots: int, groups: int, num_queries: int, device: torch.device) -> Tensor:
    """Matching queries do not see denoising queries, and a group sees itself and the matching queries only."""
    group = torch.arange(2 * slots * groups, device=device) // (2 * slots)
    group = torch.cat([group, torch.full((num_queries,), -1, device=device)])
    return (group[None] != -1) & (group[None] != group[:, None])
