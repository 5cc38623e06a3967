"""The training objective of Mask2Former (arXiv 2112.01527, section 3) and PEM: matching and losses at sampled points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmvit.losses import check_finite
from mmvit.losses.masks import dice_loss, pairwise_bce, pairwise_dice, sample_points
from mmvit.matching import Draws, Match, TorchDraws, mean_object_count
from mmvit.ops.sampling import at_least_float32

from .query_decoder import MaskPrediction


@dataclass(frozen=True)
class MaskTarget:
    """The segments of one image: labels (n,) int64, masks (n, H, W) bool at the size of the network input.

    `void` (H, W) bool marks pixels that belong to none and are known not to (kMaX-DeepLab leaves them out); None: no pixel.
    """

    labels: Tensor
    masks: Tensor
    void: Tensor | None = None


@dataclass(frozen=True)
class MaskCriterion:
    """Losses of all predictions, already weighted: ``loss_ce``, ``loss_mask``, ``loss_dice``, with ``_i`` for earlier layers.

    Attributes:
        weights: of class, mask and dice terms, in the losses and in the matching cost.
        no_object: class weight of "no object".
        num_points: points per mask.
        oversample: candidates per point, of which the most uncertain are taken.
        important: share of the points that are taken so; the others are uniform.
    """

    weights: tuple[float, float, float] = (2.0, 5.0, 5.0)
    no_object: float = 0.1
    num_points: int = 12544
    oversample: float = 3.0
    important: float = 0.75

    def __call__(
        self,
        predictions: Sequence[MaskPrediction],
        targets: Sequence[MaskTarget],
        image_ids: Sequence,
        draws: Draws | None = None,
    ) -> dict[str, Tensor]:
        """Predictions of the layers in order, the last one counts as final.

        Raises:
            NonFiniteError: a prediction is not finite.
        """
        draws = draws or TorchDraws(predictions[0].logits.device)
        last = len(predictions) - 1
        count = mean_object_count(sum(len(t.labels) for t in targets), predictions[0].logits.device)  # before what can raise
        parts = {f"{part} of layer {i}": getattr(p, part) for i, p in enumerate(predictions) for part in ("logits", "masks")}
        check_finite(parts, image_ids)
        losses = {}
        for i, prediction in enumerate(predictions):
            prediction = MaskPrediction(at_least_float32(prediction.logits), at_least_float32(prediction.masks))
            matches = self.match(prediction, targets, draws)
            terms = (
                self.class_loss(prediction.logits, targets, matches),
                *self.mask_losses(prediction.masks, targets, matches, count, draws),
            )
            suffix = "" if i == last else f"_{i}"
            for name, weight, value in zip(("ce", "mask", "dice"), self.weights, terms):
                losses[f"loss_{name}{suffix}"] = weight * value
        return losses

    @torch.no_grad()
    def match(self, prediction: MaskPrediction, targets: Sequence[MaskTarget], draws: Draws) -> list[Match]:
        """Minimum-cost assignment of each image: (queries ascending, targets)."""
        matches = []
        for logits, masks, target in zip(prediction.logits, prediction.masks, targets, strict=True):
            points = draws.uniform((1, self.num_points, 2)).to(masks.dtype)
            found = sample_points(masks, points.expand(len(masks), -1, -1))
            wanted = sample_points(target.masks.to(masks.dtype), points.expand(len(target.masks), -1, -1))
            cost = (
                -self.weights[0] * logits.softmax(-1)[:, target.labels]
                + self.weights[1] * pairwise_bce(found, wanted)
                + self.weights[2] * pairwise_dice(found, wanted)
            )
            queries, objects = linear_sum_assignment(cost.cpu().numpy())
            matches.append((torch.as_tensor(queries, device=masks.device), torch.as_tensor(objects, device=masks.device)))
        return matches

    def class_loss(self, logits: Tensor, targets: Sequence[MaskTarget], matches: Sequence[Match]) -> Tensor:
        """Cross-entropy over classes and "no object", averaged with the class weights over all queries of the batch."""
        classes = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:2], classes, device=logits.device)
        for row, target, (queries, objects) in zip(wanted, targets, matches):
            row[queries] = target.labels[objects]
        weight = logits.new_ones(classes + 1)
        weight[-1] = self.no_object
        return F.cross_entropy(logits.transpose(1, 2), wanted, weight)

    def mask_losses(
        self, masks: Tensor, targets: Sequence[MaskTarget], matches: Sequence[Match], count: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss at sampled points of the matched masks, divided by `count`."""
        found = torch.cat([m[queries] for m, (queries, _) in zip(masks, matches)])
        if not len(found):
            return found.sum(), found.sum()
        with torch.no_grad():
            points = self.uncertain_points(found, draws)
            wanted = [t.masks[objects] for t, (_, objects) in zip(targets, matches)]
            split = points.split([len(w) for w in wanted])
            labels = torch.cat([sample_points(w.to(masks.dtype), p) for w, p in zip(wanted, split) if len(w)])
        logits = sample_points(found, points)
        bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1).sum()
        return bce / count, dice_loss(logits, labels).sum() / count

    def uncertain_points(self, masks: Tensor, draws: Draws) -> Tensor:
        """(n, h, w) logits -> (n, num_points, 2): the candidates with the smallest |logit|, and uniform points."""
        candidates = draws.uniform((len(masks), int(self.num_points * self.oversample), 2)).to(masks.dtype)
        taken = int(self.important * self.num_points)
        nearest = sample_points(masks, candidates).abs().topk(taken, dim=1, largest=False).indices
        chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
        others = self.num_points - taken
        return torch.cat([chosen, draws.uniform((len(masks), others, 2)).to(masks.dtype)], 1) if others else chosen
