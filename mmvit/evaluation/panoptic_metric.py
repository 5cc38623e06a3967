"""Panoptic quality as a metric of MMEngine's runner."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmvit.data.panoptic_files import read_panoptic
from mmvit.errors import UserError, did_you_mean
from mmvit.evaluation.panoptic import PanopticQuality, check_categories, match_segments, with_labels
from mmvit.evaluation.streaming import StreamingMetric, plane
from mmvit.registry import METRICS


@METRICS.register_module()
class PanopticMetric(StreamingMetric):
    """Panoptic quality on a COCO panoptic file, equal to Cityscapes' and COCO's tools; figures are fractions 0..1.

    Gives ``PQ``, ``SQ``, ``RQ``, the same of things (``PQ_th`` ...) and of stuff (``PQ_st`` ...), and ``PQ/<class>``; NaN for
    classes that occur nowhere (see `match_segments` and `PanopticQuality.scores`). Segments are counted as the pictures come
    and nothing else is kept.

    A sample carries its ``img_id``, ``pred_panoptic_seg`` (the segment id of every pixel of the original picture, 0 = void)
    and ``segments_info`` (``dict(id, label)`` each). Label k is the class ``dataset_meta["classes"][k]``, of category id
    ``dataset_meta["cat_ids"][k]``; where these are not given, the category of that name in the file.

    Args:
        ann_file: the COCO panoptic json of the ground truth.
        png_dir: folder of its PNGs. None: named like the file, without ``.json``.
        classwise: log a table of PQ, SQ and RQ of each class.
        collect_device, prefix, collect_dir: see `BaseMetric`.
    """

    def __init__(
        self,
        ann_file: str | Path,
        png_dir: str | Path | None = None,
        classwise: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.truth = read_panoptic(ann_file, png_dir)
        check_categories(self.truth)
        self.classwise = classwise

    @cached_property
    def labels(self) -> dict[int, int]:
        """Label of each category id of the file; UserError when file and dataset have other classes."""
        names = {category["id"]: category["name"] for category in self.truth.categories}
        cat_ids = (self.dataset_meta or {}).get("cat_ids")
        if cat_ids is None:
            by_name = {name: identity for identity, name in names.items()}
            for name in self.classes:
                if name not in by_name:
                    raise UserError(
                        f"{self.truth.path}: class {name!r} is not among the file's categories.{did_you_mean(name, by_name)} "
                        "Correct the class list of the dataset, or evaluate against its file"
                    )
            cat_ids = [by_name[name] for name in self.classes]
        if len(cat_ids) != len(self.classes) or set(cat_ids) != set(names):
            only = sorted(set(names) ^ set(cat_ids))
            raise UserError(
                f"{self.truth.path}: has {len(names)} categories, the dataset {len(self.classes)} classes"
                + (f"; category id {only[0]} is in one of them only" if only else "")
                + ". Evaluate against the file that the dataset reads"
            )
        return {identity: label for label, identity in enumerate(cat_ids)}

    def no_counts(self) -> np.ndarray:
        return PanopticQuality(len(self.classes)).counts

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Counts the segments of a batch: `DataSample`s, or the dicts that the runner makes of them."""
        for sample in data_samples:
            sample = sample if isinstance(sample, Mapping) else sample.to_dict()
            key = sample["img_id"]
            if "pred_panoptic_seg" not in sample or "segments_info" not in sample:
                raise UserError(
                    f"image id {key}: the model predicts no panoptic segments. Evaluate another task, or another model"
                )
            annotation = self.truth[key]
            found = match_segments(
                self.truth.read_colours(annotation),
                with_labels(annotation["segments_info"], self.labels, f"{self.truth.path}: image id {key}"),
                plane(sample["pred_panoptic_seg"]["data"]),
                sample["segments_info"],
                len(self.classes),
                f"image id {key}",
            )
            self.count(key, found.counts)

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """The figures of the one array of counts in `results`."""
        quality = PanopticQuality(len(self.classes), results[0])
        things = [self.labels[category["id"]] for category in self.truth.categories if category["isthing"]]
        if self.classwise and is_main_process():
            self._log_table(quality)
        scores = quality.scores(self.classes, things)
        return {key: value for key, value in scores.items() if not key.startswith(("SQ/", "RQ/"))}

    def _log_table(self, quality: PanopticQuality) -> None:
        from rich.console import Console
        from rich.table import Table

        scores = quality.class_scores()
        table = Table("class", *scores, title="Panoptic quality by class")
        for name, *values in zip(self.classes, *scores.values()):
            table.add_row(name, *("-" if np.isnan(value) else f"{value:.3f}" for value in values))
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        print_log("\n" + text.getvalue(), "current")
