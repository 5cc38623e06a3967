"""The record of a training run: scalars in a file, and their curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmvit.engine.checkpoint import atomic_text

#: The score that sums up a task: its key among the metrics -> what people call it.
HEADLINES = {"PQ": "PQ", "coco/bbox_mAP": "box AP", "coco/segm_mAP": "mask AP", "mIoU": "mIoU"}
_COCO_PARTS = {"_50": "AP50", "_75": "AP75", "_s": "small", "_m": "medium", "_l": "large"}
#: What is shown beside a headline score: key -> name.
_DETAILS: dict[str, dict[str, str]] = {
    **{key: {f"{key}{end}": name for end, name in _COCO_PARTS.items()} for key in ("coco/bbox_mAP", "coco/segm_mAP")},
    "PQ": {"SQ": "SQ", "RQ": "RQ"},
    "mIoU": {"mAcc": "mAcc", "aAcc": "aAcc"},
}


def headline(metrics: Mapping[str, Any]) -> str | None:
    """The first key of `HEADLINES` that `metrics` contain."""
    return next((key for key in HEADLINES if key in metrics), None)


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
        record = {key: number(value) for key, value in record.items()}
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


def number(value: Any) -> Any:
    """`value` as JSON holds it: a number that is not finite becomes null."""
    if isinstance(value, (str, int)) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def score_text(metrics: Mapping[str, Any]) -> str:
    """``box AP 0.512 (AP50 0.700, ...), mask AP 0.480`` or ``mIoU 0.812 (mAcc 0.900, aAcc 0.950)``: the first headline score
    with what belongs to it, then the others; every score where there is none.
    """
    key = headline(metrics)
    if key is None:
        return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, (int, float)))
    parts = [f"{name} {metrics[part]:.3f}" for part, name in _DETAILS[key].items() if metrics.get(part) is not None]
    others = [f", {name} {metrics[other]:.3f}" for other, name in HEADLINES.items() if other != key and other in metrics]
    return f"{HEADLINES[key]} {metrics[key]:.3f}" + (f" ({', '.join(parts)})" if parts else "") + "".join(others)


def class_table(metrics: Mapping[str, Any], prefix: str = "IoU/") -> str:
    """The scores of single classes (keys that start with `prefix`) as a text table; empty where there are none."""
    rows = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    if not rows:
        return ""
    cells = [f"{name}  {'  -  ' if value is None or math.isnan(value) else f'{value:.3f}'}" for name, value in rows.items()]
    width = max(map(len, cells))
    columns = max(1, min(4, 110 // (width + 3)))
    height = -(-len(cells) // columns)
    lines = ["   ".join(cell.rjust(width) for cell in cells[i::height]) for i in range(height)]
    return "\n".join([f"{prefix.rstrip('/')} by class (-: neither labelled nor predicted)", *lines])


def draw_curves(records: Sequence[dict[str, Any]], metric: str | None, path: Path, by_epoch: bool = True) -> None:
    """Draw loss and, where measured, `metric` over epochs (or iterations) to the PNG file `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit, label = ("epoch", "epoch") if by_epoch else ("iter", "iteration")
    losses = [(r[unit], r["loss"]) for r in records if r.get("loss") is not None]
    scores = [(r[unit], r[metric]) for r in records if r.get(metric) is not None]
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if losses:
        left.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1)
    left.set(title="training loss", xlabel=label, ylabel="loss")
    if scores:
        right.plot(*zip(*scores, strict=True), color="tab:orange", marker="o", markersize=3)
    right.set(title="validation", xlabel=label, ylabel=HEADLINES.get(metric, metric or "score"), ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
