"""The engine: runner, loops, hooks, optimizer rules and the assembly of a config.

Names are looked up on first use, so that ``mmvit.engine.commands`` (the command-line arguments) imports in milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "runner": ("Runner",),
    "loops": ("EpochTrainLoop", "IterTrainLoop", "seed_step"),
    "checkpoint": ("atomic_save", "read_checkpoint", "last_checkpoint"),
    "ema": ("WarmupEMA", "WarmupEMAHook"),
    "optim": ("AmpWrapper", "ParamRuleConstructor"),
    "bad_batches": ("replay",),
    "hooks": (
        "CheckpointHook",
        "CurveHook",
        "InterruptHook",
        "Interrupted",
        "ProgressHook",
        "RuntimeHook",
        "StopAugmentation",
        "WorstImagesHook",
    ),
    "scalars": ("HEADLINES", "headline", "score_text"),
    "config": ("load_config", "check_config", "apply_options"),
    "assembly": ("assemble",),
    "run": ("train", "test"),
    "cost": ("count_flops", "latencies", "peak_memory"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
