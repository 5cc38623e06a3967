"""COCO box AP as a metric of MMEngine's runner."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmvit.data.annotations import read_coco
from mmvit.errors import UserError
from mmvit.evaluation.boxes import BoxScores, evaluate_boxes
from mmvit.registry import METRICS


@METRICS.register_module()
class CocoBoxMetric(BaseMetric):
    """Box AP on a COCO annotation file, equal to pycocotools' (see `evaluate_boxes`, also for the meaning of -1).

    Gives ``coco/bbox_mAP``, ``_50``, ``_75``, ``_s``, ``_m``, ``_l`` and ``coco/bbox_AR_1``, ``_10``, ``_100``, ``_s``,
    ``_m``, ``_l``. Label k of a prediction is the class ``dataset_meta["classes"][k]``, found by name in the file, so that
    training and validation file may number their categories differently. Only pictures that were evaluated count; if they
    are not all of the file's, it is logged.

    Args:
        ann_file: the COCO json that the evaluated dataset reads.
        classwise: log a table of the AP of each class.
        outfile: write the detections there as a COCO results json.
        collect_device, prefix, collect_dir: see `BaseMetric`.
    """

    default_prefix = "coco"

    def __init__(
        self,
        ann_file: str | Path,
        classwise: bool = False,
        outfile: str | Path | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.ann_file = str(ann_file)
        self.annotations = read_coco(ann_file)
        self.classwise = classwise
        self.outfile = None if outfile is None else Path(outfile)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keeps the predictions of a batch: `DataSample`s, or the dicts that the runner makes of them."""
        for sample in data_samples:
            sample = sample if isinstance(sample, Mapping) else sample.to_dict()
            instances = sample["pred_instances"]
            boxes, scores, labels = (_array(instances[key]) for key in ("bboxes", "scores", "labels"))
            self.results.append(
                (
                    int(sample["img_id"]),
                    boxes.astype(np.float64).reshape(-1, 4),
                    scores.astype(np.float64),
                    labels.astype(np.int64),
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The twelve figures from what `process` kept on all ranks."""
        pictures = {result[0]: result for result in reversed(results)}  # samplers may repeat a picture to fill the last round
        pictures = {image_id: pictures[image_id] for image_id in sorted(pictures)}
        total = len(self.annotations.image_ids)
        if len(pictures) < total:
            print_log(
                f"{self.prefix}: {len(pictures)} of the {total} pictures of {self.ann_file} were evaluated; only they count",
                "current",
                logging.WARNING,
            )
        cat_ids = self._cat_ids()
        detections = self._detections(pictures.values(), cat_ids)
        if self.outfile is not None:
            _write_json(self.outfile, detections)
        scores = evaluate_boxes(self.annotations, detections, image_ids=list(pictures), cat_ids=cat_ids)
        if self.classwise:
            self._log_table(scores)
        return {f"bbox_{name}": value for name, value in scores.stats.items()}

    def _cat_ids(self) -> list[int]:
        """Category id of every label."""
        classes = (self.dataset_meta or {}).get("classes")
        return [self.annotations.cat_ids[i] for i in self.annotations.select_classes(classes)]

    def _detections(self, pictures: Sequence[tuple], cat_ids: list[int]) -> list[dict]:
        """COCO results of all pictures. Non-finite ones, which a diverged model predicts, are left out and counted."""
        detections, dropped = [], 0
        for image_id, boxes, scores, labels in pictures:
            if len(labels) and not (labels.min() >= 0 and labels.max() < len(cat_ids)):
                raise UserError(
                    f"image id {image_id}: predicted label {int(labels.max() if labels.min() >= 0 else labels.min())}, but "
                    f"there are {len(cat_ids)} classes. Model and dataset disagree on the number of classes"
                )
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
            dropped += int((~finite).sum())
            corners = boxes[finite]
            xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            detections += [
                {"image_id": image_id, "category_id": cat_ids[label], "bbox": box, "score": score}
                for label, box, score in zip(labels[finite].tolist(), xywh.tolist(), scores[finite].tolist())
            ]
        if dropped:
            print_log(
                f"{self.prefix}: left out {dropped} predictions that are not finite numbers: the model has diverged",
                "current",
                logging.ERROR,
            )
        return detections

    def _log_table(self, scores: BoxScores) -> None:
        from rich.console import Console
        from rich.table import Table

        names = dict(zip(self.annotations.cat_ids, self.annotations.classes))
        table = Table("class", "AP", title="Box AP by class")
        for cat_id, value in scores.class_ap.items():
            table.add_row(names[cat_id], "no objects" if value < 0 else f"{value:.3f}")
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        print_log("\n" + text.getvalue(), "current")


def _array(values: Any) -> np.ndarray:
    """A tensor on any device, or anything array-like, as a NumPy array."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _write_json(path: Path, content: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content))
    draft.replace(path)
