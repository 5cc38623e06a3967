"""Mean IoU of semantic segmentation as a metric of MMEngine's runner."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmvit.errors import UserError
from mmvit.evaluation.segmentation import ConfusionMatrix, confusion_picture, count_pixels, picture_miou, scores_of
from mmvit.evaluation.streaming import StreamingMetric, plane, unique_names
from mmvit.registry import METRICS


@METRICS.register_module()
class SemanticMetric(StreamingMetric):
    """Mean IoU, equal to Cityscapes' pixel-level evaluation and to mmseg's `IoUMetric`; figures are fractions 0..1.

    Gives ``mIoU``, ``mAcc``, ``aAcc`` and ``IoU/<class>`` (see `ConfusionMatrix.scores`, also for the meaning of NaN). The
    classes are those of ``dataset_meta["classes"]``. Pixels are counted as the pictures come and nothing else is kept, so that
    memory does not grow with the number of pictures. Every picture counts once: one that a sampler hands out again to fill the
    last round is left out.

    `process` gives each sample its ``miou`` (mean IoU over the classes in its label; NaN where there are none) as meta
    information, and keeps those of the latest batch, in order, in ``batch_miou``: MMEngine's evaluator hands metrics copies of
    the samples.

    Args:
        ignore_index: value of label pixels that do not count.
        classwise: log a table of IoU and accuracy of each class.
        out_dir: write the picture ``confusion.png`` into this folder.
        collect_device, prefix, collect_dir: see `BaseMetric`.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        classwise: bool = False,
        out_dir: str | Path | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.ignore_index, self.classwise = ignore_index, classwise
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.batch_miou: list[float] = []

    def no_counts(self) -> np.ndarray:
        return ConfusionMatrix(len(self.classes), self.ignore_index).counts

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Counts the pixels of a batch: `DataSample`s, or the dicts that the runner makes of them."""
        self.batch_miou = []
        for sample in data_samples:
            score = self._add(sample if isinstance(sample, Mapping) else sample.to_dict())
            self.batch_miou.append(score)
            if isinstance(sample, Mapping):
                sample["miou"] = score
            else:
                sample.set_metainfo({"miou": score})

    def _add(self, sample: Mapping[str, Any]) -> float:
        """Count one picture unless it was seen before; its mean IoU."""
        name = str(sample.get("img_path") or f"image id {sample.get('img_id')}")
        if "gt_sem_seg" not in sample:
            raise UserError(f"{name}: was loaded without a label: put LoadSemanticMask into the evaluation's pipeline")
        pred, label = (plane(sample[key]["data"]) for key in ("pred_sem_seg", "gt_sem_seg"))
        counts = count_pixels(pred, label, len(self.classes), self.ignore_index, name)
        self.count(sample.get("img_id", name), counts)
        return picture_miou(counts)

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Scores of the one matrix of counts (C, C) in `results`."""
        (matrix,) = results
        scores, names = scores_of(matrix), self.classes
        if is_main_process():
            if self.out_dir is not None:
                confusion_picture(matrix, names, self.out_dir / "confusion.png")
            if self.classwise:
                self._log_table(scores)
        metrics = {key: scores[key] for key in ("mIoU", "mAcc", "aAcc")}
        return metrics | {f"IoU/{name}": float(value) for name, value in zip(unique_names(names), scores["IoU"])}

    def _log_table(self, scores: Mapping[str, Any]) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table("class", "IoU", "accuracy", title="IoU by class")
        for name, iou, acc in zip(self.classes, scores["IoU"], scores["Acc"]):
            cells = ("-" if np.isnan(value) else f"{value:.3f}" for value in (iou, acc))
            table.add_row(name, *cells)
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        print_log("\n" + text.getvalue(), "current")
