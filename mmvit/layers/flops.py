"""Floating-point operations of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

#: Operators that PyTorch's counter does not know: attention on the CPU.
_MORE_OPERATORS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, **settings: sdpa_flop_count(query, key, value)
    )
}


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations (two per multiply-add) of the matrix products, attention and convolutions of one call."""
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_OPERATORS)
    counter.mod_tracker = _NoModules()
    with counter:
        run()
    return counter.get_total_flops()


class _NoModules(contextlib.nullcontext):
    """Tells the counter that no module is running: PyTorch's own tracker fails on one that is given a parameter while no
    gradients are recorded.
    """

    parents = frozenset({"Global"})
