"""What is published for the model of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmvit.leaderboard.runs import VAL_IMAGES, Run, plain
from mmvit.weights import Figures, Published, index
from mmvit.weights.figures import all_figures


@dataclass(frozen=True)
class Reported:
    """Published figures of a run's model: percent by column, and in what setting they were measured."""

    scores: dict[str, float | None]
    params_m: float | None
    flops_g: float | None
    setting: str


def reported(run: Run) -> list[Reported]:
    """What is published for the model of a run, the likeliest first; empty where nothing compares with it.

    Figures compare only if the run was evaluated with its whole decoder on the whole val set that they belong to. Those of
    the very checkpoint come first (by its file's name), then those of its method, variant, backbone and data set.
    """
    if run.images is None or VAL_IMAGES.get(run.dataset) != run.images or any("decoder layers" in flag for flag in run.flags):
        return []
    name = Path(run.checkpoint or "").name
    exact = [
        _as_reported(entry, f"{entry.name}, arXiv {entry.source['arxiv']}, {entry.source['code']}", run)
        for entry in index().values()
        if name == entry.file_name and entry.source and (entry.dataset or "coco") == run.dataset
    ]
    rows = [_as_reported(row, row.setting, run) for row in all_figures() if _same_model(row, run)]
    return [one for one in (*exact, *rows) if any(one.scores.values())]


def _same_model(row: Figures, run: Run) -> bool:
    if row.dataset != run.dataset or plain(row.method) != plain(run.method):
        return False
    if row.variant is not None:
        return plain(row.variant) == plain(run.variant) and (not run.backbone or plain(row.backbone) == plain(run.backbone))
    same_task = run.task == row.task or {run.task, row.task} == {"detection", "instance"}
    return same_task and plain(row.backbone) == plain(run.backbone)


def _as_reported(figures: Figures | Published, setting: str, run: Run) -> Reported:
    miou = figures.miou_ms if "tta" in run.flags else figures.miou_ss
    scores = {key: getattr(figures, key, None) for key in ("box_ap", "mask_ap", "pq")} | {"miou": miou}
    return Reported(scores, figures.params_m, figures.flops_g, setting)
