"""What models, heads and metrics cost, each beside a peer measured in the same run.

Names are looked up on first use, so that ``mmvit benchmark --help`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "add_arguments": "mmvit.benchmark.command",
    "run": "mmvit.benchmark.command",
    "PEERS": "mmvit.benchmark.model",
    "benchmark_model": "mmvit.benchmark.model",
    "create_peer": "mmvit.benchmark.model",
    "print_report": "mmvit.benchmark.model",
    "benchmark_heads": "mmvit.benchmark.heads",
    "heads_table": "mmvit.benchmark.heads",
    "benchmark_masks": "mmvit.benchmark.masks",
    "masks_tables": "mmvit.benchmark.masks",
    "benchmark_backbones": "mmvit.benchmark.backbones",
    "backbones_table": "mmvit.benchmark.backbones",
    "benchmark_metrics": "mmvit.benchmark.metrics",
    "metrics_table": "mmvit.benchmark.metrics",
    "benchmark_panoptic": "mmvit.benchmark.panoptic",
    "panoptic_table": "mmvit.benchmark.panoptic",
    "count_flops": "mmvit.engine.cost",
    "latencies": "mmvit.engine.cost",
    "peak_memory": "mmvit.engine.cost",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
