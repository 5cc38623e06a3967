"""Evaluated runs: reading the ``metrics.json`` files that `tools/test.py` writes.

Of what `mmvit.engine.test` writes, these fields are read, and all but ``scores`` may be missing:

* ``task``, ``arch`` (method or variant), ``backbone``, ``config``, ``config_hash``, ``checkpoint``, ``sha256``: what was
  evaluated. Old files have no ``arch``; the config's name tells the method then.
* ``data`` (name or path), ``images``: on what.
* ``eval_layers``, ``deploy``, ``slide``, ``tta``, ``device``: how. ``date`` (ISO 8601): when, else the time of the file.
* ``parameters``, ``flops`` (two per multiply-add), ``latency`` (seconds) of a picture of ``input_size``.
* ``scores``: ``coco/bbox_mAP``, ``coco/segm_mAP``, ``PQ``, ``mIoU`` as fractions.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmvit.errors import UserError
from mmvit.weights.figures import all_figures

#: Column -> name of the score that the metrics give it (behind the last ``/``) and title.
SCORES = {"box_ap": ("bbox_mAP", "box AP"), "mask_ap": ("segm_mAP", "mask AP"), "pq": ("PQ", "PQ"), "miou": ("mIoU", "mIoU")}
_HEADLINE = {"detection": "box_ap", "instance": "mask_ap", "panoptic": "pq", "semantic": "miou"}
#: Images of the val sets that published figures are measured on.
VAL_IMAGES = {"coco": 5000, "ade20k": 2000, "cityscapes": 500}
_DATA_WORDS = (
    ("shapes", r"shapes"),
    ("coco", r"(instances|panoptic)_val2017|coco"),
    ("ade20k", r"ade"),
    ("cityscapes", r"cityscapes|leftimg8bit|gtfine"),
)
_REMEDY = "evaluate again with `tools/test.py CONFIG CHECKPOINT`, or leave the file out"


@dataclass(frozen=True)
class Run:
    """One evaluated run. Scores are in percent; None where the file says nothing."""

    file: Path
    task: str
    model: str
    method: str | None
    variant: str | None
    backbone: str | None
    dataset: str
    data: str | None
    images: int | None
    scores: dict[str, float | None]
    parameters: int | None
    flops: float | None
    latency: float | None
    input_size: str | None
    device: str | None
    config: str | None
    config_hash: str | None
    checkpoint: str | None
    sha256: str | None
    flags: tuple[str, ...]
    date: float

    @property
    def headline(self) -> float | None:
        """The score that sums up its task."""
        return self.scores[_HEADLINE[self.task]]


def find_files(words: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The ``metrics.json`` files that `words` name: files, patterns, and folders that are searched with all below them.

    Raises:
        UserError: a word that leads to no file.
    """
    found: dict[Path, Path] = {}
    for word in map(os.fspath, words):
        paths = [Path(word)] if Path(word).exists() else [Path(path) for path in glob.glob(word, recursive=True)]
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("metrics*.json"))]
        if not files:
            what = "holds no metrics.json" if paths else "does not exist"
            raise UserError(
                f"{word} {what}: evaluate a run first (`tools/test.py CONFIG CHECKPOINT` writes it), or check the path"
            )
        found.update({file.resolve(): file for file in files})
    return sorted(found.values())


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read one ``metrics.json``.

    Raises:
        UserError: a file that cannot be read, or that is not what `tools/test.py` writes.
    """
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        changed = path.stat().st_mtime
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged, or no JSON"
        raise UserError(f"cannot read {path} ({reason}): {_REMEDY}") from error
    if not isinstance(report, dict) or not isinstance(report.get("scores"), dict):
        raise UserError(f'{path} is not what `tools/test.py` writes (there are no "scores" in it): {_REMEDY}')
    scores = _scores(report["scores"])
    method, variant = _method(report)
    task = _text(report, "task") or next((task for task, key in _HEADLINE.items() if scores[key] is not None), "detection")
    if task not in _HEADLINE:
        raise UserError(f"{path}: there is no task {task!r}; tasks are {', '.join(_HEADLINE)}. {_REMEDY.capitalize()}")
    backbone = _text(report, "backbone")
    return Run(
        file=path,
        task=task,
        model=_model(report, method, variant, backbone) or path.parent.name,
        method=method,
        variant=variant,
        backbone=backbone,
        dataset=_dataset(report),
        data=_text(report, "data"),
        images=_whole(report, "images"),
        scores=scores,
        parameters=_whole(report, "parameters"),
        flops=_number(report.get("flops")),
        latency=_number(report.get("latency")),
        input_size=_size(report.get("input_size")),
        device=_text(report, "device"),
        config=_text(report, "config"),
        config_hash=_text(report, "config_hash"),
        checkpoint=_text(report, "checkpoint"),
        sha256=_text(report, "sha256"),
        flags=_flags(report),
        date=_date(report, changed),
    )


def _text(report: dict[str, Any], key: str) -> str | None:
    value = report.get(key)
    return str(value) if isinstance(value, (str, int, float)) and str(value) else None


def _number(value: Any) -> float | None:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def _whole(report: dict[str, Any], key: str) -> int | None:
    value = _number(report.get(key))
    return None if value is None else int(value)


def _size(value: Any) -> str | None:
    return "x".join(map(str, value)) or None if isinstance(value, list) else None


def _scores(raw: dict[str, Any]) -> dict[str, float | None]:
    """Percent by column; a negative score (nothing to measure) counts as none."""
    values = {key.rpartition("/")[2]: _number(value) for key, value in raw.items() if not key.startswith("IoU/")}
    found = {column: values.get(name) for column, (name, _) in SCORES.items()}
    return {column: None if value is None or value < 0 else 100 * value for column, value in found.items()}


def plain(word: str | None) -> str:
    return re.sub(r"[^a-z0-9+]", "", (word or "").lower())


def _method(report: dict[str, Any]) -> tuple[str | None, str | None]:
    """Method and variant, by the model's ``arch`` or by the name of the config: (``rtdetr``, ``r50m``), (``upernet``, None)."""
    methods = sorted({row.method for row in all_figures()}, key=len, reverse=True)
    for word in (_text(report, "arch"), _text(report, "config")):
        name = next((name for name in methods if word and f"{word}_".startswith(f"{name}_")), None)
        if name:
            return name, word[len(name) + 1 :] or None
        match = re.fullmatch(r"(v2_)?(r\d+|hgnetv2)(?:vd)?(_m)?(_\w+)?", word or "")  # RT-DETR's own names
        if match:
            version, size, small, rest = (part or "" for part in match.groups())
            return f"rtdetr{version.strip('_')}", size + small.strip("_") + rest
    return None, None


def _model(report: dict[str, Any], method: str | None, variant: str | None, backbone: str | None) -> str | None:
    """What to call it: ``rtdetr_r50`` (by variant), ``upernet_swin_tiny`` (by backbone), or the name of its config."""
    rows = [row for row in all_figures() if row.method == method]
    if variant and rows and all(row.variant for row in rows):  # a method whose models are not told apart by the backbone
        usual = {plain(row.backbone) for row in rows if row.variant == variant}
        return f"{method}_{variant}" + (f" with {backbone}" if backbone and usual and plain(backbone) not in usual else "")
    return f"{method}_{backbone}" if method and backbone else _text(report, "config")


def _dataset(report: dict[str, Any]) -> str:
    for word in (_text(report, "dataset"), _text(report, "data")):
        for name, pattern in _DATA_WORDS:
            if word and re.search(pattern, word.lower()):
                return name
    return _text(report, "dataset") or "other"


def _flags(report: dict[str, Any]) -> tuple[str, ...]:
    layers = _whole(report, "eval_layers")
    flags = [f"{layers} decoder layers"] if layers is not None else []
    return (*flags, *(key for key in ("deploy", "slide", "tta") if report.get(key)))


def _date(report: dict[str, Any], changed: float) -> float:
    try:
        return datetime.fromisoformat(str(report.get("date"))).timestamp()
    except ValueError:
        return changed


def collect(words: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """The runs that `words` name (see `find_files`), by task, data set and score, the best first.

    Of evaluations of the same config, weights, data and flags only the latest stays.
    """
    runs = [read_run(file) for file in find_files(words)]
    latest: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: (run.date, run.file)):
        same = (run.config_hash or run.config, run.sha256, run.data, run.images, run.flags)
        latest[same if run.sha256 else (run.file.resolve(),)] = run
    return sorted(latest.values(), key=_order)


def _order(run: Run) -> tuple[Any, ...]:
    tasks, sets = list(_HEADLINE), list(VAL_IMAGES)
    place = sets.index(run.dataset) if run.dataset in sets else len(sets)
    score = run.headline
    return (
        tasks.index(run.task),
        place,
        run.dataset,
        score is None,
        -(score or 0.0),
        run.model,
        run.flags,
        run.file.as_posix(),
    )
