"""The training objective of RT-DETR (arXiv 2304.08069, section 4.3) and RT-DETRv2's options (arXiv 2407.17140)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.errors import UserError
from mmvit.losses import bce_loss, centre_to_corners, check_finite, focal_loss, iou_and_giou, varifocal_loss
from mmvit.matching import Denoising, Match, MatchCost, Target, hungarian_match, mean_object_count
from mmvit.ops.sampling import at_least_float32

Prediction = tuple[Tensor, Tensor]  # logits (B, Q, C), centre boxes (B, Q, 4)

WEIGHTS = {"vfl": 1.0, "focal": 1.0, "bce": 1.0, "bbox": 5.0, "giou": 2.0}


@dataclass(frozen=True)
class DETRCriterion:
    """Set-prediction losses of all layers, already weighted.

    Attributes:
        losses: which of ``vfl``, ``focal``, ``bce``, ``boxes`` (L1 and GIoU) are summed.
        alpha, gamma: focal parameters of the classification losses.
        cost: matching cost.
        share_matches: the earlier decoder layers reuse the last layer's assignment.
        box_weight: ``iou`` or ``giou`` of each match weighs its GIoU loss and is the varifocal target; None: target IoU.
    """

    losses: Sequence[str] = ("vfl", "boxes")
    alpha: float = 0.75
    gamma: float = 2.0
    cost: MatchCost = MatchCost()
    share_matches: bool = False
    box_weight: str | None = None

    def __post_init__(self) -> None:
        unknown = set(self.losses) - {"vfl", "focal", "bce", "boxes"}
        if unknown or self.box_weight not in (None, "iou", "giou"):
            raise UserError(
                f"DETRCriterion: losses {sorted(unknown)} or box_weight {self.box_weight!r} are not known. "
                "Losses are 'vfl', 'focal', 'bce' and 'boxes'; box_weight is 'iou', 'giou' or None."
            )

    def __call__(
        self,
        layers: list[Prediction],
        targets: list[Target],
        image_ids: Sequence,
        *,
        encoder: Prediction | None = None,
        denoising_layers: Sequence[Prediction] = (),
        denoising: Denoising | None = None,
    ) -> dict[str, Tensor]:
        """Losses in float32, named ``loss_{vfl,bbox,giou}`` (last layer), with ``_aux_i``, ``_enc_0``, ``_dn_i`` behind.

        Args:
            layers: predictions of the decoder layers, last one last.
            encoder: the selected proposals (one class column: they are matched and classified class-agnostically).
            denoising_layers: the denoising part of every decoder layer, described by `denoising`.

        Raises:
            NonFiniteError: a prediction or a loss holds NaN or infinity.
        """
        count = mean_object_count(sum(len(t.labels) for t in targets), layers[0][0].device)  # before anything that can raise
        layers, denoising_layers = [_full(p) for p in layers], [_full(p) for p in denoising_layers]
        encoder = None if encoder is None else _full(encoder)
        named = {f"{part} of decoder layer {i}": t for i, p in enumerate(layers) for part, t in zip(("logits", "boxes"), p)}
        if encoder is not None:
            named |= dict(zip(("logits of the encoder proposals", "boxes of the encoder proposals"), encoder))
        named |= {
            f"denoising {part} of decoder layer {i}": t
            for i, p in enumerate(denoising_layers)
            for part, t in zip(("logits", "boxes"), p)
        }
        check_finite(named, image_ids)

        result = {}
        matched = layers[-1:] if self.share_matches else layers
        matches = hungarian_match(*(torch.stack(part) for part in zip(*matched)), targets, self.cost)
        matches = matches * len(layers) if self.share_matches else matches
        for i, (prediction, match) in enumerate(zip(layers, matches)):
            result |= self._layer(prediction, targets, match, count, "" if i == len(layers) - 1 else f"_aux_{i}")
        for i, prediction in enumerate(denoising_layers):
            result |= self._layer(prediction, targets, denoising.matches, count * denoising.groups, f"_dn_{i}")
        if encoder is not None:
            if encoder[0].shape[-1] == 1:
                targets = [Target(torch.zeros_like(t.labels), t.boxes) for t in targets]
            match = hungarian_match(encoder[0][None], encoder[1][None], targets, self.cost)[0]
            result |= self._layer(encoder, targets, match, count, "_enc_0")
        check_finite({name: loss[None] for name, loss in result.items()}, image_ids)
        return result

    def _layer(
        self, prediction: Prediction, targets: list[Target], matches: list[Match], count: Tensor, suffix: str
    ) -> dict[str, Tensor]:
        logits, boxes = prediction
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(matches)])
        query = torch.cat([query for query, _ in matches])
        labels = torch.cat([t.labels[index] for t, (_, index) in zip(targets, matches)])
        goal = torch.cat([t.boxes[index] for t, (_, index) in zip(targets, matches)]).to(boxes.dtype)
        matched = boxes[image, query]
        iou, giou = iou_and_giou(centre_to_corners(matched), centre_to_corners(goal))
        weight = {None: None, "iou": iou.detach(), "giou": giou.detach()}[self.box_weight]

        positive = torch.zeros_like(logits)
        positive[image, query, labels] = 1
        result = {}
        for name in self.losses:
            if name == "vfl":
                quality = torch.zeros_like(logits)
                quality[image, query, labels] = iou.detach() if weight is None else weight
                result["vfl"] = varifocal_loss(logits, quality, positive, self.alpha, self.gamma)
            elif name == "focal":
                result["focal"] = focal_loss(logits, positive, self.alpha, self.gamma)
            elif name == "bce":
                result["bce"] = bce_loss(logits, positive)
            else:
                result["bbox"] = F.l1_loss(matched, goal, reduction="sum")
                result["giou"] = ((1 - giou) if weight is None else (1 - giou) * weight).sum()
        return {f"loss_{name}{suffix}": WEIGHTS[name] * value / count for name, value in result.items()}


def _full(prediction: Prediction) -> Prediction:
    """Half-precision predictions as float32."""
    return tuple(at_least_float32(t) for t in prediction)
