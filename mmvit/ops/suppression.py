"""Non-maximum suppression: greedy, per class, soft (arXiv:1704.04503) and with groups.

Greedy suppression is sequential by definition, yet "kept" is the only solution of: a box is kept when no kept box
with a higher score suppresses it. Blocks of boxes are solved by iterating that sentence until nothing changes, which
takes as many rounds as the longest chain of suppressions, not as many as there are boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .sampling import at_least_float32

_BLOCK = 1024  # boxes solved at once
_PAIRS = {"cpu": 1 << 17}  # IoUs computed at once, by type of device: what fits a cache, or
_MANY_PAIRS = 1 << 22  # what fills an accelerator


def pairwise_iou(first: Tensor, second: Tensor, offset: int = 0) -> Tensor:
    """IoU of xyxy boxes (n, 4) and (m, 4): (n, m), NaN for two boxes without area. A width is x2 - x1 + `offset`.

    Works in place on (n, m) planes, so no gradient flows.
    """
    first, second = first.detach(), second.detach()
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(first[:, high, None], second[:, high])
        side -= torch.maximum(first[:, low, None], second[:, low])
        sides.append((side.add_(offset) if offset else side).clamp_(min=0))
    intersection = sides[0].mul_(sides[1])
    union = torch.add(_areas(first, offset)[:, None], _areas(second, offset), out=sides[1]).sub_(intersection)
    return intersection.div_(union)


def _row_parts(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """`rows` in parts whose pairs with all columns are computed at once."""
    return rows.split(max(1, _PAIRS.get(rows.device.type, _MANY_PAIRS) // max(1, columns)))


def _areas(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def bbox_overlaps(first: Tensor, second: Tensor, mode: str = "iou", aligned: bool = False, offset: int = 0) -> Tensor:
    """IoU (`mode` "iou") or intersection over the first box's area ("iof") of xyxy boxes.

    Args:
        first: (n, 4). second: (m, 4). aligned: compare box i with box i only (n = m).

    Returns:
        (n, m), or (n,) when `aligned`; NaN where both areas (for "iof": the first) are zero.
    """
    pair = (slice(None),) if aligned else (slice(None), None)
    left = first[pair]
    sides = torch.minimum(left[..., 2:], second[..., 2:]) - torch.maximum(left[..., :2], second[..., :2]) + offset
    sides = sides.clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    area = _areas(first, offset)[pair]
    return intersection / (area if mode == "iof" else area + _areas(second, offset) - intersection)


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0, score_threshold: float = 0.0, max_num: int = -1
) -> Tensor:
    """Greedy suppression: a box goes when its IoU with a kept box of higher score exceeds `iou_threshold`.

    Args:
        boxes: (n, 4) xyxy. scores: (n,).
        offset: 0, or 1 where a box includes its last pixel (a width is x2 - x1 + offset).
        score_threshold: when positive, only boxes with a higher score take part.
        max_num: keep at most so many, the best; all when not positive.

    Returns:
        (kept,) int64 indices into `boxes`, in descending order of score.
    """
    if score_threshold > 0:
        taking_part = (scores > score_threshold).nonzero().squeeze(1)
        return taking_part[nms(boxes[taking_part], scores[taking_part], iou_threshold, offset, 0.0, max_num)]
    boxes, scores = at_least_float32(boxes.detach()), scores.detach()
    if not boxes.is_floating_point():
        boxes = boxes.float()
    found = native.find("nms", boxes.device) if boxes.dtype == torch.float32 and len(boxes) else None
    if found is not None and (offset == 0 or found.source != "torchvision"):
        kept = found.function(boxes, scores.to(boxes.dtype), iou_threshold, offset)
    else:
        order = _ranking(scores)
        kept = order[_greedy(boxes[order], iou_threshold, offset, max_num)]
    return kept[:max_num] if max_num > 0 else kept


def _ranking(scores: Tensor) -> Tensor:
    """Indices in descending order of score; equal scores in the order in which the compiled op, by this call, puts them."""
    return scores.sort(0, descending=True).indices


def _greedy(boxes: Tensor, iou_threshold: float, offset: int, max_num: int = -1, inclusive: bool = False) -> Tensor:
    """Ranks (in ascending order) of the boxes that are kept; `boxes` are sorted by descending score."""
    alive = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    count = 0
    while len(alive) and not 0 < max_num <= count:
        block, alive = alive[:_BLOCK], alive[_BLOCK:]
        block = block[_solve(boxes[block], iou_threshold, offset, inclusive)]
        kept.append(block)
        count += len(block)
        alive = alive[~_suppressed(boxes[block], boxes[alive], iou_threshold, offset, inclusive)]
    return torch.cat(kept) if kept else alive


def _over(iou: Tensor, threshold: float, inclusive: bool) -> Tensor:
    return iou >= threshold if inclusive else iou > threshold


def _solve(boxes: Tensor, iou_threshold: float, offset: int, inclusive: bool) -> Tensor:
    """Mask of the boxes of one block that survive each other."""
    suppresses = _over(pairwise_iou(boxes, boxes, offset), iou_threshold, inclusive).triu(diagonal=1)
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        updated = ~(suppresses & keep[:, None]).any(0)
        if torch.equal(updated, keep):
            return keep
        keep = updated


def _suppressed(kept: Tensor, others: Tensor, iou_threshold: float, offset: int, inclusive: bool) -> Tensor:
    """Mask of `others` that some box of `kept` suppresses."""
    masks = [_over(pairwise_iou(part, kept, offset), iou_threshold, inclusive).any(1) for part in _row_parts(others, len(kept))]
    return torch.cat(masks)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0.0,
    max_num: int = -1,
) -> Tensor:
    """`nms` within each label: boxes of different labels (n,) int64 never suppress each other.

    The labels' boxes are moved apart in float64, so that far-off coordinates lose no precision.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    wide = boxes.detach().double()
    span = wide.max() - wide.min() + 1 + offset
    return nms(wide + (labels.double() * span)[:, None], scores, iou_threshold, offset, score_threshold, max_num)


def nms_match(boxes: Tensor, scores: Tensor, iou_threshold: float) -> list[Tensor]:
    """Greedy suppression at IoU >= `iou_threshold` that returns, for each kept box, its group.

    Returns:
        For each kept box in descending order of score: (members,) int64 indices into `boxes`, the kept box first,
        then those that it suppressed in descending order of score.
    """
    order = _ranking(scores.detach())
    ranked = at_least_float32(boxes.detach())[order]
    if len(ranked) == 0:
        return []
    kept = _greedy(ranked, iou_threshold, 0, inclusive=True)
    owner = torch.full((len(ranked),), len(kept), device=boxes.device)
    owner[kept] = torch.arange(len(kept), device=boxes.device)
    others = (owner == len(kept)).nonzero().squeeze(1)
    for part in _row_parts(others, len(kept)):
        over = pairwise_iou(ranked[part], ranked[kept]) >= iou_threshold
        earlier = kept[None] < part[:, None]
        owner[part] = (over & earlier).int().argmax(1)  # the first kept box that suppresses it
    by_group = owner.sort(stable=True)
    return list(order[by_group.indices].split(by_group.values.bincount(minlength=len(kept)).tolist()))


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS: the best box in turn lowers the scores of those it overlaps.

    Each lowered score is multiplied by 1 - IoU where IoU >= `iou_threshold` (``"linear"``), by 0 there (``"naive"``)
    or by exp(-IoU² / sigma) (``"gaussian"``); a box leaves when its score falls below `min_score`.

    A box that no better box overlaps can be settled at once, so each round settles all boxes that are the best in their
    own neighbourhood. Where two boxes have the same score the earlier one goes first; the IoU of two boxes without
    area counts as zero.

    Args:
        boxes: (n, 4) xyxy. scores: (n,).

    Returns:
        dets (kept, 5): boxes and lowered scores, descending, and (kept,) int64 indices into `boxes`.
    """
    if method not in ("naive", "linear", "gaussian"):
        raise ValueError(f"method must be 'naive', 'linear' or 'gaussian', got {method!r}")
    boxes = at_least_float32(boxes.detach())
    scores = scores.detach().to(boxes.dtype, copy=True)
    if len(boxes) == 0:
        return boxes.new_zeros(0, 5), torch.zeros(0, dtype=torch.int64, device=boxes.device)
    active = scores >= min_score
    active[scores.argmax()] = True  # the very best is never tested against min_score
    first, second, factor = _neighbours(boxes, active, iou_threshold, sigma, method, offset)
    settled = torch.zeros_like(active)
    while bool(active.any()):
        alive = active[first] & active[second]
        first, second, factor = first[alive], second[alive], factor[alive]
        beaten = (scores[first] > scores[second]) | ((scores[first] == scores[second]) & (first < second))
        best = active.clone()
        best[second[beaten]] = False
        settled |= best
        active &= ~best
        hit = best[first] & active[second]
        scores.scatter_reduce_(0, second[hit], factor[hit], "prod")
        active &= scores >= min_score
    kept = settled.nonzero().squeeze(1)
    kept = kept[scores[kept].sort(descending=True, stable=True).indices]
    return torch.cat([boxes[kept], scores[kept, None]], 1), kept


def _neighbours(
    boxes: Tensor, active: Tensor, iou_threshold: float, sigma: float, method: str, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ordered pairs of active boxes that lower each other's score, and the factor."""
    candidates = active.nonzero().squeeze(1)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in _row_parts(candidates, len(candidates)):
        iou = pairwise_iou(boxes[part], boxes[candidates], offset).nan_to_num(0.0)
        near = iou > 0 if method == "gaussian" else iou >= iou_threshold
        near &= part[:, None] != candidates
        row, column = near.nonzero(as_tuple=True)
        pairs.append((part[row], candidates[column], _factor(iou[row, column], sigma, method)))
    return tuple(torch.cat(parts) for parts in zip(*pairs))


def _factor(iou: Tensor, sigma: float, method: str) -> Tensor:
    if method == "gaussian":
        return torch.exp(-(iou * iou) / sigma)
    return 1 - iou if method == "linear" else torch.zeros_like(iou)
