"""Cost of a call: floating-point operations, latency, peak memory."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmvit.layers.flops import count_flops

__all__ = ["count_flops", "latencies", "peak_memory"]


class _Tracker(TorchDispatchMode):
    """Adds the storages that operators return, and takes them off when they are freed."""

    held = peak = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen = weakref.WeakSet()

    def free(self, size: int) -> None:
        self.held -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    self.held += storage.nbytes()
                    weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return result


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that one call holds at its peak, above what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _Tracker() as tracker:
        run()
    return tracker.peak


def latencies(runs: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that all meet the same machine."""

    def once(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for run in runs.values():
        once(run)
        once(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(once(run))
    return {name: statistics.median(values) for name, values in times.items()}
