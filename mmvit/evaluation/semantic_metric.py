"""Mean IoU of semantic segmentation as a metric of MMEngine's runner."""

from __future__ import annotations

import io
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmvit.errors import UserError
from mmvit.evaluation.segmentation import ConfusionMatrix, confusion_picture, count_pixels, picture_miou
from mmvit.registry import METRICS


@METRICS.register_module()
class SemanticMetric(BaseMetric):
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
        super().__init__(collect_device=collect_device, prefix=prefix or "semantic", collect_dir=collect_dir)
        self.prefix = prefix  # by default none: the base class would warn of that
        self.ignore_index, self.classwise = ignore_index, classwise
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.batch_miou: list[float] = []
        self._start()

    def _start(self) -> None:
        self._matrix: ConfusionMatrix | None = None
        self._seen: dict[Hashable, None] = {}  # in order
        self._last: np.ndarray | None = None  # counts of the picture seen last, not yet in the matrix

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the evaluated dataset."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise UserError("SemanticMetric: the dataset does not say what its classes are: give it metainfo['classes']")
        return tuple(classes)

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
        if self._matrix is None:
            self._matrix = ConfusionMatrix(len(self.classes), self.ignore_index)
        pred, label = (_array(sample[key]["data"]) for key in ("pred_sem_seg", "gt_sem_seg"))
        counts = count_pixels(pred, label, self._matrix.num_classes, self.ignore_index, name)
        key = sample.get("img_id", name)
        if key not in self._seen:
            self._seen[key] = None
            if self._last is not None:
                self._matrix.counts += self._last
            self._last = counts
        return picture_miou(counts)

    def evaluate(self, size: int) -> dict[str, float]:
        """The scores of all pictures on all processes; `size`: how many there are in the dataset."""
        matrix, count = self._sum()
        self._start()
        if count < size:
            print_log(f"SemanticMetric: {count} of {size} pictures were evaluated; only they count", "current", logging.WARNING)
        metrics = self.compute_metrics([matrix])
        return {f"{self.prefix}/{key}": value for key, value in metrics.items()} if self.prefix else metrics

    def _sum(self) -> tuple[ConfusionMatrix, int]:
        """Counts of all processes, each picture once, and the number of pictures.

        A sampler that fills its last round repeats pictures as the last of a process: that is why the counts of the last one
        are held apart.
        """
        matrix = self._matrix or ConfusionMatrix(len(self.classes), self.ignore_index)
        ranks: list[list[Hashable]] = all_gather_object(list(self._seen))
        lasts = [keys[-1:] for keys in ranks]
        owner: dict[Hashable, int] = {}
        for rank, keys in enumerate(ranks):
            for key in keys[:-1]:
                if owner.setdefault(key, rank) != rank:
                    raise UserError(
                        f"image id {key}: two processes evaluated it, and not as the last one. Evaluate with "
                        "sampler=dict(type='ResumableSampler', shuffle=False, round_up=False)"
                    )
        for rank, keys in enumerate(lasts):
            for key in keys:
                owner.setdefault(key, rank)
        mine = self._last is not None and owner[lasts[get_rank()][0]] == get_rank()
        counts = torch.from_numpy(matrix.counts + (self._last if mine else 0))
        all_reduce(counts)
        matrix.counts = counts.numpy()
        return matrix, len(owner)

    def compute_metrics(self, results: list[ConfusionMatrix]) -> dict[str, float]:
        """Scores of the one matrix in `results`."""
        (matrix,) = results
        scores, names = matrix.scores(), self.classes
        if is_main_process():
            if self.out_dir is not None:
                confusion_picture(matrix, names, self.out_dir / "confusion.png")
            if self.classwise:
                self._log_table(scores)
        metrics = {key: scores[key] for key in ("mIoU", "mAcc", "aAcc")}
        return metrics | {f"IoU/{name}": float(value) for name, value in zip(_unique(names), scores["IoU"])}

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


def _array(values: Any) -> np.ndarray:
    """Class indices (1, H, W) or (H, W), a tensor on any device or an array, as an array (H, W)."""
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _unique(names: Sequence[str]) -> list[str]:
    """`names`, with the class number behind those that occur twice."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]
