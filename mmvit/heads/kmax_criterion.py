"""The training objective of kMaX-DeepLab (arXiv 2207.04044; MaX-DeepLab, arXiv 2012.00759): PQ-style matching and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmvit.losses import check_finite
from mmvit.matching import Draws, TorchDraws
from mmvit.ops.sampling import at_least_float32

from .kmax_decoder import KMaXPrediction
from .mask_criterion import MaskTarget

EPS = 1e-5
REAL, VOID = 0.75, 0.25  # shares of matched and of unmatched queries in the losses
SIMILARITY_TEMPERATURE = 0.3


@dataclass(frozen=True)
class _Image:
    """One image's targets, flattened: labels (n,), masks (n, P) 0/1, void (P,) 0/1, area of the segment of each pixel (P,)."""

    labels: Tensor
    masks: Tensor
    void: Tensor
    area: Tensor


@dataclass(frozen=True)
class _Match:
    """Matched pairs of one image, (m,) each: queries, targets and probability of the right class; (Q,) weights of all queries.

    A matched query weighs as much as its mask is good, another one as much of its mask lies on void pixels.
    """

    queries: Tensor
    objects: Tensor
    probability: Tensor
    weights: Tensor


@dataclass(frozen=True)
class KMaXCriterion:
    """Losses of all predictions, already weighted: ``loss_ce``, ``loss_mask``, ``loss_dice``, ``loss_pixel_insdis``.

    The final prediction's assignment, and how good its pairs are, serves all; names of earlier ones end in ``_i``. With
    semantic logits also ``loss_aux_semantic``. Every loss is averaged over its non-zero entries in each image, then over the
    images.

    Attributes:
        weights: of the losses, in the order above.
        num_points: pixels drawn for the instance discrimination, and for the semantic loss (None: all).
        temperatures: of these draws; larger ones favour small segments more.
    """

    weights: tuple[float, float, float, float, float] = (3.0, 0.3, 3.0, 1.0, 1.0)
    num_points: tuple[int, int | None] = (4096, 4096)
    temperatures: tuple[float, float] = (1.5, 2.0)

    def __call__(
        self,
        predictions: Sequence[KMaXPrediction],
        targets: Sequence[MaskTarget],
        image_ids: Sequence,
        semantic: Tensor | None = None,
        draws: Draws | None = None,
    ) -> dict[str, Tensor]:
        """Predictions of the layers in order, the last one is final.

        Args:
            targets: their masks at the size of the predicted ones, or finer: then every k-th pixel counts, from the first.
            semantic: logits (B, C or C + 1, h, w) of the auxiliary head.

        Raises:
            NonFiniteError: a prediction is not finite.
        """
        draws = draws or TorchDraws(predictions[-1].logits.device)
        parts = {f"{part} of layer {i}": getattr(p, part) for i, p in enumerate(predictions) for part in ("logits", "masks")}
        check_finite(parts, image_ids)
        final = predictions[-1]
        images = [_image(target, final.masks) for target in targets]
        matches = self.match(final, images)
        losses = {}
        for i, prediction in enumerate(predictions):
            suffix = "" if i + 1 == len(predictions) else f"_{i}"
            terms = self._terms(prediction, images, matches, draws)
            for name, weight, value in zip(("ce", "mask", "dice", "pixel_insdis"), self.weights, terms):
                losses[f"loss_{name}{suffix}"] = weight * value
        if semantic is not None:
            images = [_image(target, semantic) for target in targets]
            losses["loss_aux_semantic"] = self.weights[4] * self.semantic_loss(at_least_float32(semantic), images, draws)
        return losses

    def matched(self, prediction: KMaXPrediction, targets: Sequence[MaskTarget]) -> list[tuple[Tensor, Tensor]]:
        """The assignment of each image: (queries ascending, targets)."""
        found = self.match(prediction, [_image(target, prediction.masks) for target in targets])
        return [(match.queries, match.objects) for match in found]

    @torch.no_grad()
    def match(self, prediction: KMaXPrediction, images: Sequence[_Image]) -> list[_Match]:
        """The assignment of each image with the largest sum of mask similarity times class probability."""
        matches = []
        for logits, masks, image in zip(at_least_float32(prediction.logits), at_least_float32(prediction.masks), images):
            similarity, _ = _similarity(masks, image)
            probability = logits.softmax(-1)[:, image.labels]
            pairs = linear_sum_assignment(-(similarity * probability).cpu().numpy())
            queries, objects = (torch.as_tensor(side, device=masks.device) for side in pairs)
            everywhere = masks.flatten(1).softmax(0)
            weights = VOID * ((everywhere * image.void).sum(1) / (everywhere.sum(1) + EPS)).clamp(min=EPS)
            weights[queries] = REAL * similarity[queries, objects].clamp(min=EPS)
            matches.append(_Match(queries, objects, probability[queries, objects], weights))
        return matches

    def _terms(
        self, prediction: KMaXPrediction, images: Sequence[_Image], matches: Sequence[_Match], draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        noise = _gumbel(draws, (len(images), prediction.masks[0, 0].numel())).to(prediction.masks.device)
        per_image = []
        parts = (at_least_float32(x) for x in (prediction.logits, prediction.masks, prediction.features))
        for logits, masks, features, image, match, gumbel in zip(*parts, images, matches, noise):
            per_image.append(
                (
                    class_loss(logits, image, match),
                    mask_loss(masks, image, match),
                    dice_loss(masks, image, match),
                    self.instance_loss(features.flatten(1), image, gumbel),
                )
            )
        return tuple(torch.stack(term).mean() for term in zip(*per_image))

    def instance_loss(self, features: Tensor, image: _Image, gumbel: Tensor) -> Tensor:
        """Pixels of one segment should be similar, others not: features (C, P) of length 1."""
        chosen = _draw(image.area, image.void > 0, gumbel, self.num_points[0], self.temperatures[0])
        features, masks = features[:, chosen], image.masks[:, chosen]
        partners = masks.T @ masks.sum(1)  # pixels of the same segment
        # cross-entropy with targets `same / partners`: their product with the similarities is that with a mean of features
        mean = features @ masks.T @ masks / partners.clamp(min=1)
        agreement = (features * mean).sum(0) / SIMILARITY_TEMPERATURE
        similarity = (features.T / SIMILARITY_TEMPERATURE) @ features
        return _nonzero_mean((similarity.logsumexp(1) - agreement) * (partners > 0))

    def semantic_loss(self, logits: Tensor, images: Sequence[_Image], draws: Draws) -> Tensor:
        """Cross-entropy of the auxiliary head at drawn pixels, or at all of them; pixels of no segment do not count."""
        count = self.num_points[1]
        logits = logits.flatten(2)
        noise = _gumbel(draws, (len(logits), logits.shape[2])).to(logits.device) if count is not None else [None] * len(logits)
        losses = []
        for flat, image, gumbel in zip(logits, images, noise):
            void = image.void > 0
            labels = image.labels[image.masks.argmax(0)] if len(image.labels) else torch.zeros_like(void, dtype=torch.long)
            loss = F.cross_entropy(flat.T, labels, reduction="none").masked_fill(void, 0)
            if gumbel is not None:
                loss = loss[_draw(image.area, void, gumbel, count, self.temperatures[1])]
            losses.append(_nonzero_mean(loss))
        return torch.stack(losses).mean()


def _subsample(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, H, W) -> (n, h, w): every k-th pixel from the first one."""
    steps = [-(-side // small) for side, small in zip(masks.shape[-2:], size)]
    return masks[:, :: steps[0], :: steps[1]]


def _image(target: MaskTarget, predicted: Tensor) -> _Image:
    masks = _subsample(target.masks, predicted.shape[-2:]).flatten(1)
    seen = masks.any(1)
    masks = masks[seen].to(at_least_float32(predicted).dtype)
    return _Image(target.labels[seen], masks, (masks.sum(0) == 0).to(masks.dtype), (masks * masks.sum(1, keepdim=True)).sum(0))


def _similarity(masks: Tensor, image: _Image) -> tuple[Tensor, Tensor]:
    """Dice-like overlap (Q, n) of predicted masks (Q, h, w) with the targets; their probabilities (Q, P), 0 on void pixels."""
    probability = masks.flatten(1).softmax(0) * (1 - image.void)
    overlap = 2 * probability @ image.masks.T
    return overlap / (probability.sum(1)[:, None] + image.masks.sum(1) + EPS), probability


def _nonzero_mean(losses: Tensor) -> Tensor:
    return losses.sum() / (losses != 0).sum().clamp(min=1)


def _gumbel(draws: Draws, shape: tuple[int, int]) -> Tensor:
    return -torch.log(-torch.log(draws.uniform(shape).clamp(1e-6, 1 - 1e-6)))


def _draw(area: Tensor, excluded: Tensor, gumbel: Tensor, count: int, temperature: float) -> Tensor:
    """Positions of `count` pixels (P,), drawn without repetition with probability (P / area)^temperature."""
    logits = temperature * torch.log(len(area) / area.clamp(min=1))
    noisy = logits.masked_fill(excluded, -99999.0) + gumbel
    return noisy.topk(min(count, len(area))).indices


def class_loss(logits: Tensor, image: _Image, match: _Match) -> Tensor:
    """Cross-entropy of all queries, unmatched ones should say "void"."""
    wanted = torch.full(logits.shape[:1], logits.shape[-1] - 1, device=logits.device)
    wanted[match.queries] = image.labels[match.objects]
    return _nonzero_mean(F.cross_entropy(logits, wanted, reduction="none") * match.weights)


def mask_loss(masks: Tensor, image: _Image, match: _Match) -> Tensor:
    """Per-pixel cross-entropy over the queries: which of them the pixel belongs to."""
    wanted = torch.zeros_like(masks.flatten(1))
    wanted[match.queries] = image.masks[match.objects]
    wanted = wanted / wanted.sum(0).clamp(min=1)
    return _nonzero_mean(-(wanted * masks.flatten(1).log_softmax(0)).sum(0))


def dice_loss(masks: Tensor, image: _Image, match: _Match) -> Tensor:
    """Dice loss of the matched masks, weighted by the probability of their class."""
    _, probability = _similarity(masks, image)
    p, g = probability[match.queries], image.masks[match.objects]
    loss = 1 - (2 * (p * g).sum(1) + 1) / (p.sum(1) + g.sum(1) + 1)
    return (loss * match.probability.clamp(min=EPS)).sum() * REAL / len(masks)
