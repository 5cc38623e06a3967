"""Published figures (`published.json`): what the authors of methods and backbones report on COCO, ADE20K and Cityscapes.

Figures of the papers and of the authors' model tables, in percent, on val sets. Figures that are defined otherwise (test sets,
WaveMix' thresholded IoU) are not in the table. Nothing measured by this package is in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmvit.errors import UserError, did_you_mean

#: Names of the scores that a row may have, headline first for each task.
SCORES = ("box_ap", "mask_ap", "pq", "miou_ss", "miou_ms")


@dataclass(frozen=True)
class Figures:
    """What the authors report for one trained model; None where they say nothing.

    Attributes:
        task: ``detection``, ``instance``, ``semantic`` or ``panoptic``.
        dataset: ``coco``, ``ade20k`` or ``cityscapes``.
        method: for example ``upernet``, ``vwformer``, ``mask_rcnn``, ``rtdetr``.
        backbone: its name as `mmvit.create_backbone` takes it, for example ``swin_tiny``.
        variant: what else distinguishes the model, for example ``r50m`` or ``window 4``.
        pretrain: data set of the backbone's pretraining (``Objects365``: of the detector's).
        schedule: ``160k`` iterations, ``3x`` (36 epochs for two-stage detectors, 12 epochs per x), ``50e`` epochs.
        size: training crop, or the input of detectors with a fixed one, height x width.
        box_ap, mask_ap, pq, miou_ss, miou_ms: scores in percent; ``ss`` is single-scale, ``ms`` multi-scale with flips.
        params_m, flops_g: parameters in millions; operations in 1e9 as the authors count them (mostly multiply-adds).
        source: paper, arXiv number, code and, where known, its version.
    """

    task: str
    dataset: str
    method: str
    backbone: str
    variant: str | None
    pretrain: str | None
    schedule: str | None
    size: str | None
    box_ap: float | None
    mask_ap: float | None
    pq: float | None
    miou_ss: float | None
    miou_ms: float | None
    params_m: float | None
    flops_g: float | None
    source: dict[str, str]

    @property
    def setting(self) -> str:
        """Variant, pretraining, schedule and size, and where the figures stand, in one line."""
        paper = f"arXiv {self.source['arxiv']}" if "arxiv" in self.source else self.source["paper"]
        facts = (self.variant, self.pretrain, self.schedule, self.size, f"{paper}, {self.source['code']}")
        return ", ".join(fact for fact in facts if fact)


@lru_cache(maxsize=1)
def all_figures() -> tuple[Figures, ...]:
    """Every row of the table, ordered by source."""
    raw = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = [dict(zip(raw["columns"], row)) for row in raw["rows"]]
    return tuple(Figures(**{**row, "source": raw["sources"][row["source"]]}) for row in rows)


def published_figures(
    method: str | None = None,
    backbone: str | None = None,
    dataset: str | None = None,
    *,
    task: str | None = None,
    schedule: str | None = None,
    variant: str | None = None,
) -> list[Figures]:
    """The published figures of a method, a backbone and a data set, for example of ``("upernet", "swin_tiny", "ade20k")``.

    An argument that is None matches everything. Case does not matter, nor ``-`` or ``_`` in names.

    Returns:
        Matching rows, in the order of the table; empty where nothing is published for this combination.

    Raises:
        UserError: a method or data set that occurs nowhere in the table.
    """
    wanted = dict(method=method, backbone=backbone, dataset=dataset, task=task, schedule=schedule, variant=variant)
    wanted = {key: _plain(value) for key, value in wanted.items() if value is not None}
    for key in ("method", "dataset", "task"):
        known = sorted({getattr(row, key) for row in all_figures()})
        if key in wanted and wanted[key] not in map(_plain, known):
            word = dict(method=method, dataset=dataset, task=task)[key]
            raise UserError(
                f"no published figures for {key} {word!r}.{did_you_mean(str(word), known)} Known: {', '.join(known)}"
            )
    return [row for row in all_figures() if all(_plain(getattr(row, key)) == value for key, value in wanted.items())]


def _plain(word: str | None) -> str:
    return (word or "").lower().replace("-", "").replace("_", "")
