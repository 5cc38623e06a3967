"""Focal loss (arXiv:1708.02002, eq. 5), computed from log-probabilities so that no logit overflows it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .sampling import at_least_float32


def sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-alpha (1-p)^gamma log p for the target's class, -(1-alpha) p^gamma log(1-p) for the others.

    Args:
        logits: (N, C). target: (N,) int64 class; any other number, as C, means background.
        weight: (C,) factor of the rows with that target; background rows have factor 1.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the sum divided by N.

    Returns:
        (N, C), or a scalar.
    """
    loss = _dispatch("sigmoid_focal_loss", sigmoid_focal, logits, target, gamma, alpha, weight)
    return _reduce(loss, reduction, len(logits))


def softmax_focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-alpha (1-p)^gamma log p with p the softmax probability of the target's class.

    Arguments as in `sigmoid_focal_loss`, except that rows with a negative target are ignored (0).

    Returns:
        (N,), or a scalar.
    """
    loss = _dispatch("softmax_focal_loss", _softmax_focal, logits, target, gamma, alpha, weight)
    return _reduce(loss, reduction, len(logits))


def _dispatch(
    op: str, function: Callable[..., Tensor], logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> Tensor:
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (N, C) and target (N,), got {tuple(logits.shape)} and {tuple(target.shape)}")
    found = native.find(op, logits.device) if native.takes(logits) and logits.numel() and weight is None else None
    return (found.function if found is not None else function)(logits, target, gamma, alpha, weight)


def sigmoid_focal(logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    """The elements (N, C) of `sigmoid_focal_loss`."""
    wide = at_least_float32(logits)
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    signed = torch.where(positive, wide, -wide)  # log-odds of the right answer
    share = torch.where(positive, alpha, 1 - alpha).to(wide.dtype)
    loss = -share * torch.exp(gamma * F.logsigmoid(-signed)) * F.logsigmoid(signed)
    return (loss * _row_weight(target, weight, loss)).to(logits.dtype)


def _softmax_focal(logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    log_p = F.log_softmax(at_least_float32(logits), 1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    miss = -torch.expm1(log_p)  # 1 - p
    loss = -alpha * miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma * log_p
    return (torch.where(target >= 0, loss, 0.0) * _row_weight(target, weight, loss)[:, 0]).to(logits.dtype)


def softmax_focal_from_probabilities(
    softmax: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss (N,) and its derivative (N,) by log p of the target's class, times p-independent row weights.

    The gradient with respect to logit c is derivative · (1[c = target] - softmax_c).
    """
    p = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    tiny = torch.finfo(p.dtype).tiny
    log_p, miss = p.clamp(min=tiny).log(), (1 - p).clamp(min=tiny)
    share = alpha * (target >= 0) * _row_weight(target, weight, p)[:, 0]
    return -share * miss**gamma * log_p, share * (gamma * miss ** (gamma - 1) * p * log_p - miss**gamma)


def _row_weight(target: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    """(N, 1): the weight of each row's target class, 1 for background and without weights."""
    if weight is None or weight.numel() == 0:
        return like.new_ones(1, 1)
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, weight[target.clamp(0, len(weight) - 1)].to(like.dtype), 1.0)[:, None]


def _reduce(loss: Tensor, reduction: str, rows: int) -> Tensor:
    if reduction == "none":
        return loss
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return loss.sum() / max(rows, 1) if reduction == "mean" else loss.sum()
