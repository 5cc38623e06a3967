"""The record of a training run: scalars in a file, and their curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvit.engine.checkpoint import atomic_text

BOX_AP = "coco/bbox_mAP"


class ScalarLog:
    """Records (dicts with ``iter``) in memory and in a file, one JSON object a line.

    Args:
        until: records of later iterations, left by a run that was cut and resumed from an earlier checkpoint, are dropped;
            0 starts afresh.
    """

    def __init__(self, path: Path, until: int = 0) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = [r for r in _read(path) if r["iter"] <= until] if until else []
        atomic_text("".join(_line(record) for record in self.records), path)

    def add(self, record: dict[str, Any]) -> None:
        record = {key: _number(value) for key, value in record.items()}
        self.records.append(record)
        with open(self.path, "a") as file:
            file.write(_line(record))


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the line was cut off when the process was killed
            continue
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _number(value: Any) -> Any:
    if isinstance(value, (str, int)) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def score_text(metrics: dict[str, float]) -> str:
    """``box AP 0.512 (AP50 0.700, ...)``, or every score when there is no box AP."""
    if BOX_AP not in metrics:
        return ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, (int, float)))
    stem = BOX_AP.removesuffix("_mAP")
    names = dict(mAP_50="AP50", mAP_75="AP75", mAP_s="small", mAP_m="medium", mAP_l="large")
    parts = [f"{text} {metrics[f'{stem}_{key}']:.3f}" for key, text in names.items() if f"{stem}_{key}" in metrics]
    return f"box AP {metrics[BOX_AP]:.3f}" + (f" ({', '.join(parts)})" if parts else "")


def draw_curves(records: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Draw loss over epochs and, where measured, `metric` over epochs to the PNG file `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [(r["epoch"], r["loss"]) for r in records if r.get("loss") is not None]
    scores = [(r["epoch"], r[metric]) for r in records if r.get(metric) is not None]
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if losses:
        left.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1)
    left.set(title="training loss", xlabel="epoch", ylabel="loss")
    if scores:
        right.plot(*zip(*scores, strict=True), color="tab:orange", marker="o", markersize=3)
    right.set(title="validation", xlabel="epoch", ylabel="box AP" if metric == BOX_AP else metric, ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
