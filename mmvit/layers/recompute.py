"""Recomputing activations in the backward pass without counting anything twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_local = threading.local()


def recomputing() -> bool:
    """Whether the code runs a second time, in the backward pass. Modules that count their calls must not count this one."""
    return getattr(_local, "active", False)


@contextlib.contextmanager
def _second_time(module: nn.Module) -> Iterator[None]:
    """`recomputing` is true, and batch norms leave their running statistics alone: they have seen this batch."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    saved = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    before, _local.active = recomputing(), True
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        _local.active = before
        for norm, momentum, count in saved:
            norm.momentum, norm.num_batches_tracked = momentum, count


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, keeping only `inputs` for the backward pass, which computes the rest again."""
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _second_time(module)))
