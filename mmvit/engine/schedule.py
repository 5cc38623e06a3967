"""Learning-rate schedules shrink and grow with the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmvit.engine.log import say

LONGEST_WARMUP = 0.1  # of the run


def fit_schedule(schedulers: Sequence[Any], max_iters: int) -> list[Any]:
    """Settings of parameter schedulers for a run of `max_iters` iterations.

    A warm-up (a ``LinearLR`` or ``ConstantLR`` by iteration that starts at 0) takes a tenth of the run at most; what begins
    where it ends begins earlier, too. A warm-up of no iterations is left out. (A scheduler without ``end`` ends with the run:
    MMEngine sees to that.)
    """
    schedulers = [dict(item) if isinstance(item, dict) else item for item in schedulers]
    longest = int(max_iters * LONGEST_WARMUP)
    for warmup in [item for item in schedulers if isinstance(item, dict) and _is_warmup(item)]:
        end = warmup["end"]
        if end <= longest:
            continue
        say(f"warm-up of {end} iterations becomes {longest}: the run has {max_iters}")
        warmup["end"] = longest
        for other in schedulers:
            if isinstance(other, dict) and not other.get("by_epoch", True) and other.get("begin") == end:
                other["begin"] = longest
    return [item for item in schedulers if not (isinstance(item, dict) and _is_warmup(item) and item["end"] < 1)]


def _is_warmup(settings: dict) -> bool:
    return (
        settings.get("type") in ("LinearLR", "ConstantLR")
        and not settings.get("by_epoch", True)
        and settings.get("begin", 0) == 0
        and "end" in settings
    )


def scale_schedule(schedulers: dict | Sequence[dict], before: int, after: int, by_epoch: bool = False) -> None:
    """Change, in place, what a recipe of `before` iterations (or epochs, as `by_epoch` says) states in them after its warm-up,
    for a run of `after`.
    """
    for settings in [schedulers] if isinstance(schedulers, dict) else schedulers:
        if settings.get("by_epoch", True) != by_epoch or _is_warmup(settings):
            continue
        if settings.get("end") == before:
            settings["end"] = after
        if "milestones" in settings:
            settings["milestones"] = [max(1, milestone * after // before) for milestone in settings["milestones"]]
