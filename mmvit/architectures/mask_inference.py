"""From classes and masks of queries to semantic, instance and panoptic results, a band of rows at a time.

Sources: Mask2Former (arXiv 2112.01527) and PEM, whose masks are independent (sigmoid); kMaX-DeepLab (arXiv 2207.04044), whose
queries compete for each pixel (softmax).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmvit.errors import UserError

from .rows import Rows


@dataclass(frozen=True)
class Panoptic:
    """A panoptic segmentation: ids int32 (H, W), 0 where there is none; (id, label, score) of each segment."""

    ids: Tensor
    segments: list[dict[str, Any]]


def semantic_scores(class_logits: Tensor, masks: Rows, softmax: bool) -> Rows:
    """Scores (C, H, W) of all classes: sum over the queries of class probability times mask probability.

    Args:
        class_logits: (Q, C + 1).
        masks: logits (Q, H, W).
        softmax: mask probabilities over the queries; else each by its sigmoid.
    """
    classes = class_logits.softmax(-1)[:, :-1]

    def scores(rows: Tensor) -> Tensor:
        probability = rows.softmax(0) if softmax else rows.sigmoid()
        return torch.einsum("qc,qhw->chw", classes, probability)

    return masks.mapped(scores, classes.shape[1])


def instances(
    class_logits: Tensor,
    masks: Rows,
    softmax: bool,
    things: Sequence[int] | None = None,
    top: int = 100,
    threshold: float = 0.4,
) -> InstanceData:
    """The `top` pairs of query and class, scored by class probability times the mean probability inside the mask.

    Args:
        class_logits: (Q, C + 1).
        masks: logits (Q, H, W).
        softmax: masks compete (inside: probability above `threshold`); else a mask is where its logit is positive.
        things: classes to keep; None for all.

    Returns:
        masks (COCO RLE), scores (k,), labels (k,), bboxes (k, 4) around the masks; pixels.
    """
    scores = class_logits.softmax(-1)[:, :-1]
    count = scores.shape[1]
    scores, index = scores.flatten().topk(min(top, scores.numel()))
    labels, queries = index % count, index // count
    if things is not None:
        kept = torch.isin(labels, torch.as_tensor(list(things), device=labels.device))
        scores, labels, queries = scores[kept], labels[kept], queries[kept]
    used, place = queries.unique(return_inverse=True)
    inside = torch.zeros(len(used), masks.height, masks.width, dtype=torch.bool)
    area, total = scores.new_zeros(len(used)), scores.new_zeros(len(used))
    for rows, band in masks.bands():
        probability = band.softmax(0)[used] if softmax else band[used].sigmoid()
        mask = probability > threshold if softmax else band[used] > 0
        inside[:, rows] = mask.cpu()
        area += mask.sum((1, 2))
        total += (probability * mask).sum((1, 2))
    quality = total / (area + 1e-6)
    codes, boxes = zip(*(_encode(mask) for mask in inside)) if len(used) else ((), ())
    chosen = place.tolist()
    return InstanceData(
        masks=[codes[i] for i in chosen],
        scores=scores * quality[place],
        labels=labels,
        bboxes=scores.new_tensor([boxes[i] for i in chosen]).reshape(-1, 4),
    )


def _encode(mask: Tensor) -> tuple[dict[str, Any], list[float]]:
    """Run lengths of a mask (H, W) bool, and the box around it."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask.numpy().view(np.uint8)))
    x, y, w, h = coco.toBbox(code).tolist()
    return code, [x, y, x + w, y + h]


def panoptic_by_argmax(
    class_logits: Tensor, masks: Rows, things: Sequence[int], object_threshold: float = 0.8, overlap_threshold: float = 0.8
) -> Panoptic:
    """Mask2Former's and PEM's rule: each pixel goes to the confident query with the largest class score times mask.

    A query that keeps less than `overlap_threshold` of its mask is dropped; stuff of one class becomes one segment.
    """
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = ((labels != class_logits.shape[1] - 1) & (scores > object_threshold)).nonzero().flatten()
    ids = torch.zeros(masks.height, masks.width, dtype=torch.int32, device=class_logits.device)
    if not len(kept):
        return Panoptic(ids, [])
    winner = torch.zeros(ids.shape, dtype=torch.int32, device=ids.device)
    won, original, both = (torch.zeros(len(kept), dtype=torch.long, device=ids.device) for _ in range(3))
    for rows, band in masks.bands():
        probability = band[kept].sigmoid()
        best = (scores[kept, None, None] * probability).argmax(0)
        inside = probability >= 0.5
        certain = inside.gather(0, best[None])[0]
        won += torch.bincount(best.flatten(), minlength=len(kept))
        original += inside.sum((1, 2))
        both += torch.bincount(best[certain], minlength=len(kept))
        winner[rows] = torch.where(certain, best + 1, 0).int()
    good = (won > 0) & (original > 0) & (both > 0) & (won / original.clamp(min=1) >= overlap_threshold)
    segments = _Segments(things)
    table = torch.zeros(len(kept) + 1, dtype=torch.int32, device=ids.device)
    for i in good.nonzero().flatten().tolist():
        table[i + 1] = segments.add(int(labels[kept[i]]), float(scores[kept[i]]))
    return Panoptic(table[winner.long()], segments.listed)


def panoptic_by_order(
    class_logits: Tensor,
    masks: Rows,
    things: Sequence[int],
    thing_threshold: float = 0.7,
    stuff_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
    pixel_threshold: float = 0.4,
    mask_power: float = 1.0,
    class_power: float = 1.0,
) -> Panoptic:
    """kMaX-DeepLab's rule: queries in the order of class score times mask score take the confident pixels that are left.

    `class_power` and `mask_power` are the exponents of the two scores.

    A query is accepted if its class score exceeds the threshold of its kind and it gets more than `overlap_threshold` of its
    mask; stuff of one class becomes one segment.
    """
    if not pixel_threshold > 1 / 3:  # else a pixel could belong to three masks, and pairs would not tell the overlap
        raise UserError(f"kMaX-DeepLab: pixel_threshold={pixel_threshold} must be above 1/3.")
    scores, labels = class_logits.softmax(-1)[:, :-1].max(-1)
    count, device = len(scores), scores.device
    first, second = (torch.zeros(masks.height, masks.width, dtype=torch.int32, device=device) for _ in range(2))
    area, total = torch.zeros(count, dtype=torch.long, device=device), scores.new_zeros(count)
    pairs = torch.zeros((count + 1) ** 2, dtype=torch.long, device=device)
    for rows, band in masks.bands():
        probability, query = band.softmax(0).topk(min(2, count), dim=0)
        query = torch.where(probability > pixel_threshold, query + 1, 0)  # 0: nobody
        for p, q in zip(probability, query):
            area += torch.bincount(q.flatten(), minlength=count + 1)[1:]
            total.scatter_add_(0, (q.flatten() - 1).clamp(min=0), torch.where(q > 0, p, 0.0).flatten().to(total.dtype))
        other = query[1] if count > 1 else torch.zeros_like(query[0])
        pairs += torch.bincount((query[0] * (count + 1) + other).flatten(), minlength=(count + 1) ** 2)
        first[rows], second[rows] = query[0].int(), other.int()
    pairs = pairs.view(count + 1, count + 1)[1:, 1:]
    shared = (pairs + pairs.T).cpu()
    mask_scores = torch.where(area > 0, total / area.clamp(min=1), 0.0)
    order = (scores.pow(class_power) * mask_scores.pow(mask_power)).argsort(descending=True, stable=True).tolist()
    areas, score_list, label_list = area.tolist(), scores.tolist(), labels.tolist()
    segments, accepted = _Segments(things), []
    table = torch.zeros(count + 1, dtype=torch.int32, device=device)
    rank = torch.full((count + 1,), count, dtype=torch.int32, device=device)
    for query in order:
        label = label_list[query]
        threshold = thing_threshold if label in segments.things else stuff_threshold
        if not areas[query] or score_list[query] <= threshold:
            continue
        left = areas[query] - int(shared[query, accepted].sum())
        if left <= overlap_threshold * areas[query]:
            continue
        table[query + 1] = segments.add(label, score_list[query])
        rank[query + 1] = len(accepted)
        accepted.append(query)
    earlier = torch.where(rank[first.long()] <= rank[second.long()], first, second)
    return Panoptic(table[earlier.long()], segments.listed)


class _Segments:
    """Gives ids from 1 on; stuff of one class shares one."""

    def __init__(self, things: Sequence[int]) -> None:
        self.things = set(things)
        self.listed: list[dict[str, Any]] = []
        self._stuff: dict[int, int] = {}

    def add(self, label: int, score: float) -> int:
        if label in self._stuff:
            return self._stuff[label]
        number = len(self.listed) + 1
        self.listed.append(dict(id=number, label=label, score=score))
        if label not in self.things:
            self._stuff[label] = number
        return number
