"""What the engine's tests share: small data, a small config, and comparison of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmvit.data import ensure_shapes
from mmvit.engine import Runner, assemble, load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def tiny_data(folder: Path, train: int = 14, val: int = 4) -> Path:
    """A shapes folder of 64-pixel pictures."""
    return ensure_shapes(folder / "shapes", train=train, val=val, size=64)


def tiny_config(
    data: Path, work_dir: Path, options: tuple[str, ...] = (), config: str = "rtdetr_shapes", **changes: Any
) -> Config:
    """The shapes recipe with the debug network at 64 x 64, batch 4, no worker processes."""
    cfg = load_config(CONFIGS / f"{config}.py")
    cfg.model.arch = "debug"
    settings = dict(data=data, work_dir=work_dir, size=64, batch_size=4, workers=0, epochs=2, seed=7, device="cpu")
    return assemble(cfg, options=options, **(settings | changes))


def tiny_masks(folder: Path, train: int = 14, val: int = 4) -> Path:
    """A shapes folder of 64-pixel pictures with semantic masks."""
    return ensure_shapes(folder / "shapes", train=train, val=val, size=64, layouts=("ade20k",))


def tiny_semantic(
    data: Path, work_dir: Path, options: tuple[str, ...] = (), config: str = "vwformer_shapes", **changes: Any
) -> Config:
    """A segmentation recipe at 64 x 64, batch 4, 6 iterations, no worker processes."""
    settings = dict(data=data, work_dir=work_dir, size=64, batch_size=4, workers=0, iters=6, seed=7, device="cpu")
    return assemble(load_config(CONFIGS / f"{config}.py"), options=options, **(settings | changes))


def train(cfg: Config) -> Runner:
    """Train by `cfg`; the runner afterwards."""
    torch.set_num_threads(1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def same(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested containers differ, tensors compared bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [f"{path}: {(a.double() - b.double()).abs().max():.3g}"]
    if isinstance(a, dict):
        if set(a) != set(b):
            return [f"{path}: keys {set(a) ^ set(b)}"]
        return [found for key in a for found in same(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)):
        return [f"{path}: length"] if len(a) != len(b) else [f for i, x in enumerate(a) for f in same(x, b[i], f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a!r} and {b!r}"]
