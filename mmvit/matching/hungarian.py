"""One-to-one assignment of queries to objects (DETR, arXiv 2005.12872; class cost of Deformable DETR, arXiv 2010.04159)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmvit.losses import centre_to_corners, iou_and_giou
from mmvit.ops.sampling import at_least_float32

Match = tuple[Tensor, Tensor]  # query indices, target indices of one image


@dataclass(frozen=True)
class Target:
    """The objects of one image: labels (n,) int64, boxes (n, 4) centre boxes normalised to the network input."""

    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class MatchCost:
    """Weights of the matching cost; alpha and gamma belong to the focal class cost."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        """logits (..., Q, C), boxes (..., Q, 4) centre boxes -> cost (..., Q, n)."""
        p = logits.sigmoid()[..., target.labels]
        positive = self.alpha * (1 - p).pow(self.gamma) * -torch.log(p + 1e-8)
        negative = (1 - self.alpha) * p.pow(self.gamma) * -torch.log(1 - p + 1e-8)
        pairs = boxes[..., :, None, :], target.boxes
        l1 = (pairs[0] - pairs[1]).abs().sum(-1)
        _, giou = iou_and_giou(centre_to_corners(pairs[0]), centre_to_corners(pairs[1]))
        return self.classification * (positive - negative) + self.l1 * l1 - self.giou * giou


@torch.no_grad()
def hungarian_match(logits: Tensor, boxes: Tensor, targets: list[Target], cost: MatchCost) -> list[list[Match]]:
    """Minimum-cost assignment of each layer and image, computed in float32 (float64 stays).

    Args:
        logits: (layers, B, Q, C). boxes: (layers, B, Q, 4) centre boxes, finite.
        targets: the objects of the B images.

    Returns:
        matches[layer][image] = (query indices ascending, target indices), each of min(Q, n) entries on the logits' device.
    """
    logits, boxes = at_least_float32(logits), at_least_float32(boxes)
    matches: list[list[Match]] = [[] for _ in logits]
    for image, target in enumerate(targets):
        costs = cost(logits[:, image], boxes[:, image], target).cpu().numpy()  # (layers, Q, n)
        for layer, matrix in zip(matches, costs):
            queries, objects = linear_sum_assignment(matrix)
            layer.append((torch.as_tensor(queries, device=logits.device), torch.as_tensor(objects, device=logits.device)))
    return matches
