"""COCO AP of boxes and masks as a metric of MMEngine's runner."""

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
from mmvit.errors import UserError, did_you_mean
from mmvit.evaluation.boxes import ApScores, evaluate_boxes, evaluate_masks
from mmvit.registry import METRICS

_KINDS = {"bbox": "box", "segm": "mask"}


@METRICS.register_module()
class CocoBoxMetric(BaseMetric):
    """Box AP, mask AP or both on a COCO annotation file, equal to pycocotools' (see `evaluate_boxes`, also for what -1 means).

    Gives ``coco/bbox_mAP``, ``_50``, ``_75``, ``_s``, ``_m``, ``_l`` and ``coco/bbox_AR_1``, ``_10``, ``_100``, ``_s``,
    ``_m``, ``_l``, the same as ``coco/segm_...`` for masks. Label k of a prediction is the class
    ``dataset_meta["classes"][k]``, found by name in the file, so that training and validation file may number their categories
    differently. Only pictures that were evaluated count; if they are not all of the file's, it is logged.

    Args:
        ann_file: the COCO json that the evaluated dataset reads.
        iou_types: "bbox", "segm" or both. For "segm" the ``pred_instances`` hold ``masks``: one COCO RLE, ``dict(size,
            counts)`` with compressed counts, per prediction, at the size of the original picture.
        classwise: log a table of the AP of each class.
        outfile: write the detections there as a COCO results json.
        collect_device, prefix, collect_dir: see `BaseMetric`.
    """

    default_prefix = "coco"

    def __init__(
        self,
        ann_file: str | Path,
        iou_types: Sequence[str] = ("bbox",),
        classwise: bool = False,
        outfile: str | Path | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.ann_file = str(ann_file)
        self.iou_types = _check_iou_types(iou_types)
        self.annotations = read_coco(ann_file, with_segmentations="segm" in self.iou_types)
        self.classwise = classwise
        self.outfile = None if outfile is None else Path(outfile)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keeps the predictions of a batch: `DataSample`s, or the dicts that the runner makes of them."""
        for sample in data_samples:
            sample = sample if isinstance(sample, Mapping) else sample.to_dict()
            instances = sample["pred_instances"]
            boxes, scores, labels = (_array(instances[key]) for key in ("bboxes", "scores", "labels"))
            image_id = int(sample["img_id"])
            self.results.append(
                (
                    image_id,
                    boxes.astype(np.float64).reshape(-1, 4),
                    scores.astype(np.float64),
                    labels.astype(np.int64),
                    _packed_masks(instances, image_id) if "segm" in self.iou_types else None,
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The twelve figures of each kind from what `process` kept on all ranks."""
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
        known = [cat_id for cat_id in cat_ids if cat_id is not None]
        evaluate = {"bbox": evaluate_boxes, "segm": evaluate_masks}
        scores = {
            kind: evaluate[kind](self.annotations, detections, image_ids=list(pictures), cat_ids=known)
            for kind in self.iou_types
        }
        if self.classwise:
            self._log_table(scores)
        return {f"{kind}_{name}": value for kind in scores for name, value in scores[kind].stats.items()}

    def _cat_ids(self) -> list[int | None]:
        """Category id of every label; None for stuff of panoptic data, which the file does not hold."""
        meta = self.dataset_meta or {}
        classes, things = meta.get("classes"), meta.get("things")
        if things is None:
            return [self.annotations.cat_ids[i] for i in self.annotations.select_classes(classes)]
        chosen = self.annotations.select_classes([classes[label] for label in things])
        cat_ids = {label: self.annotations.cat_ids[i] for label, i in zip(things, chosen)}
        return [cat_ids.get(label) for label in range(len(classes))]

    def _detections(self, pictures: Sequence[tuple], cat_ids: list[int | None]) -> list[dict]:
        """COCO results of all pictures. Non-finite ones, which a diverged model predicts, are left out and counted."""
        detections, dropped = [], 0
        for image_id, boxes, scores, labels, masks in pictures:
            if len(labels) and not (labels.min() >= 0 and labels.max() < len(cat_ids)):
                raise UserError(
                    f"image id {image_id}: predicted label {int(labels.max() if labels.min() >= 0 else labels.min())}, but "
                    f"there are {len(cat_ids)} classes. Model and dataset disagree on the number of classes"
                )
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
            dropped += int((~finite).sum())
            corners = boxes[finite]
            xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            found = [
                {"image_id": image_id, "category_id": cat_ids[label], "bbox": box, "score": score}
                for label, box, score in zip(labels[finite].tolist(), xywh.tolist(), scores[finite].tolist())
            ]
            if masks is not None:
                for detection, index in zip(found, np.flatnonzero(finite)):
                    detection["segmentation"] = {"size": masks[0], "counts": masks[1][index].decode()}
            detections += [detection for detection in found if detection["category_id"] is not None]
        if dropped:
            print_log(
                f"{self.prefix}: left out {dropped} predictions that are not finite numbers: the model has diverged",
                "current",
                logging.ERROR,
            )
        return detections

    def _log_table(self, scores: Mapping[str, ApScores]) -> None:
        from rich.console import Console
        from rich.table import Table

        names = dict(zip(self.annotations.cat_ids, self.annotations.classes))
        table = Table("class", *(f"{_KINDS[kind]} AP" for kind in scores), title="AP by class")
        for cat_id in next(iter(scores.values())).class_ap:
            values = [score.class_ap[cat_id] for score in scores.values()]
            table.add_row(names[cat_id], *("no objects" if value < 0 else f"{value:.3f}" for value in values))
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        print_log("\n" + text.getvalue(), "current")


def _check_iou_types(iou_types: Sequence[str]) -> tuple[str, ...]:
    """The kinds of AP; UserError when there is none or an unknown one."""
    kinds = (iou_types,) if isinstance(iou_types, str) else tuple(iou_types)
    for kind in kinds:
        if kind not in _KINDS:
            raise UserError(f"iou_types: {kind!r} is none of {', '.join(map(repr, _KINDS))}.{did_you_mean(kind, _KINDS)}")
    if not kinds:
        raise UserError("iou_types is empty. Give 'bbox', 'segm' or both")
    return tuple(dict.fromkeys(kinds))


def _packed_masks(instances: Mapping[str, Any], image_id: int) -> tuple[list[int], tuple[bytes, ...]]:
    """(height, width) and the compressed counts of the predicted masks of a picture."""
    masks = instances.get("masks")
    if masks is None:
        raise UserError(
            f"image id {image_id}: the model predicts no masks. Evaluate with iou_types=('bbox',), or take a model that does"
        )
    for mask in masks:
        if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), (bytes, str)):
            raise UserError(
                f"image id {image_id}: a predicted mask is {type(mask).__name__}, not a COCO RLE with compressed counts. "
                "Encode masks with pycocotools.mask.encode"
            )
    sizes = {tuple(int(side) for side in mask["size"]) for mask in masks}
    if len(sizes) > 1 or len(masks) != len(instances["labels"]):
        raise UserError(
            f"image id {image_id}: {len(masks)} predicted masks of sizes {sorted(sizes)} for {len(instances['labels'])} "
            "labels. Give one mask per prediction, all at the size of the picture"
        )
    counts = (mask["counts"] for mask in masks)
    return [*next(iter(sizes), ())], tuple(item.encode() if isinstance(item, str) else bytes(item) for item in counts)


def _array(values: Any) -> np.ndarray:
    """A tensor on any device, or anything array-like, as a NumPy array."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _write_json(path: Path, content: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content))
    draft.replace(path)
