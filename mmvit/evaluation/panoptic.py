"""Panoptic quality (Kirillov et al., arXiv 1801.00868) as COCO computes it, from counts that grow picture by picture."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvit.data.files import map_processes
from mmvit.data.panoptic_files import (
    PanopticFile,
    check_pixels,
    check_segments,
    read_panoptic,
    rgb_to_ids,
    segment_positions,
)
from mmvit.errors import UserError
from mmvit.evaluation.streaming import unique_names

_PER_PROCESS = 100  # pictures below which a further process does not pay


class PanopticQuality:
    """What was found of each class, over any number of pictures.

    Attributes:
        counts: float64 (4, num_classes): matched segments (true positives), predicted segments that match none (false
            positives), segments that none matches (false negatives), and the sum of the IoU of the matches.
    """

    def __init__(self, num_classes: int, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros((4, num_classes)) if counts is None else np.asarray(counts, np.float64)
        if num_classes < 1 or self.counts.shape != (4, num_classes):
            raise UserError(f"panoptic quality of {num_classes} classes cannot have counts of shape {self.counts.shape}")

    @property
    def tp(self) -> np.ndarray:
        """Matched segments by class, int64 (C,)."""
        return self.counts[0].astype(np.int64)

    @property
    def fp(self) -> np.ndarray:
        """Predicted segments that match none, by class, int64 (C,)."""
        return self.counts[1].astype(np.int64)

    @property
    def fn(self) -> np.ndarray:
        """Segments that no prediction matches, by class, int64 (C,)."""
        return self.counts[2].astype(np.int64)

    @property
    def iou(self) -> np.ndarray:
        """Sum of the IoU of the matches by class, float64 (C,)."""
        return self.counts[3].copy()

    def update(
        self,
        gt_ids: np.ndarray,
        gt_segments: Sequence[Mapping[str, Any]],
        pred_ids: np.ndarray,
        pred_segments: Sequence[Mapping[str, Any]],
        name: str = "picture",
    ) -> PanopticQuality:
        """Count one picture, see `match_segments`; returns the picture's own counts."""
        found = match_segments(gt_ids, gt_segments, pred_ids, pred_segments, self.counts.shape[1], name)
        self.merge(found)
        return found

    def merge(self, other: PanopticQuality) -> PanopticQuality:
        """Add the counts of other pictures; returns itself."""
        if other.counts.shape != self.counts.shape:
            raise UserError(
                f"counts of {self.counts.shape[1]} and {other.counts.shape[1]} classes cannot be added: evaluate with one list "
                "of classes"
            )
        self.counts += other.counts
        return self

    def class_scores(self) -> dict[str, np.ndarray]:
        """``PQ``, ``SQ`` and ``RQ`` of each class, float64 (C,), fractions 0..1; NaN for classes that occur nowhere.

        With TP, FP, FN: SQ is the mean IoU of the matches (0 without a match), RQ = TP / (TP + FP/2 + FN/2), PQ = SQ * RQ.
        """
        tp, fp, fn, iou = self.counts
        whole = tp + 0.5 * fp + 0.5 * fn
        occurs = whole > 0
        sq = np.divide(iou, tp, out=np.where(occurs, 0.0, np.nan), where=tp > 0)
        pq, rq = (np.divide(part, whole, out=np.full(len(tp), np.nan), where=occurs) for part in (iou, tp))
        return {"PQ": pq, "SQ": sq, "RQ": rq}

    def scores(self, classes: Sequence[str], things: Sequence[int]) -> dict[str, float]:
        """``PQ, SQ, RQ``, the same of things (``_th``) and of stuff (``_st``), then ``PQ/<class>, SQ/<class>, RQ/<class>``.

        Means over the classes that occur in the ground truth or among the predictions that count; NaN where none does.

        Args:
            classes: names of the classes. things: positions in `classes` of those whose objects are told apart.
        """
        if len(classes) != self.counts.shape[1]:
            raise UserError(f"{len(classes)} class names for counts of {self.counts.shape[1]} classes")
        by_class = self.class_scores()
        thing = np.isin(np.arange(len(classes)), list(things))
        groups = {"": np.full(len(classes), True), "_th": thing, "_st": ~thing}
        scores = {f"{key}{suffix}": _mean(by_class[key][chosen]) for suffix, chosen in groups.items() for key in by_class}
        names = unique_names(classes)
        return scores | {f"{key}/{name}": float(value) for key in by_class for name, value in zip(names, by_class[key])}


def _mean(values: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN
        return float(np.nanmean(values)) if len(values) else float("nan")


def match_segments(
    gt_ids: np.ndarray,
    gt_segments: Sequence[Mapping[str, Any]],
    pred_ids: np.ndarray,
    pred_segments: Sequence[Mapping[str, Any]],
    num_classes: int,
    name: str = "picture",
) -> PanopticQuality:
    """Matches the predicted segments of one picture with those of the ground truth.

    A prediction and a segment of the same class match when their IoU is above 1/2, which at most one pair of each can reach;
    pixels without ground truth (id 0) do not count as the prediction's. Crowds match nothing and are not missed. A prediction
    that matches nothing is no false positive if more than half of it lies on pixels without ground truth and on the crowd of
    its class (the last, should the ground truth list several). All as in the tools of COCO and Cityscapes.

    Args:
        gt_ids, pred_ids: segment id of every pixel, integers (H, W) or, as in a panoptic PNG, colours uint8 (H, W, 3); 0 for
            pixels without segment.
        gt_segments: ``dict(id, label, iscrowd=0, area=...)``, labels 0 .. num_classes - 1. As in COCO's tools an area that is
            given counts, in place of the pixels of that id.
        pred_segments: ``dict(id, label)``.
        name: what to call the picture in errors.

    Raises:
        UserError: sizes differ, a map and its segments do not fit together, or a label is none; names the picture.
    """
    gt, pred = (
        _Segments.of(segments, num_classes, f"{name} ({kind})")
        for segments, kind in ((gt_segments, "ground truth"), (pred_segments, "prediction"))
    )
    table = _overlaps(np.asarray(gt_ids), gt, np.asarray(pred_ids), pred, name)
    row, column, iou = _matches(table, gt, pred, name)
    missed = ~gt.crowd
    missed[row] = False
    wrong = ~_excused(table, gt, pred, num_classes)
    wrong[column] = False
    label = gt.labels[row]
    tp, fp, fn = (np.bincount(of, minlength=num_classes) for of in (label, pred.labels[wrong], gt.labels[missed]))
    return PanopticQuality(num_classes, np.stack([tp, fp, fn, np.bincount(label, weights=iou, minlength=num_classes)]))


@dataclass(frozen=True)
class _Segments:
    """The segments of one map as arrays (n,); areas are NaN where none is given."""

    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, segments: Sequence[Mapping[str, Any]], num_classes: int, name: str) -> _Segments:
        ids = check_segments(segments, name)
        labels = np.array([segment["label"] for segment in segments], np.int64)
        outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(outside):
            raise UserError(
                f"{name}: segment id {ids[outside[0]]} has label {labels[outside[0]]}, but there are {num_classes} classes. "
                "Model and dataset disagree on the number of classes"
            )
        crowd = np.array([segment.get("iscrowd", 0) == 1 for segment in segments], bool)
        areas = np.array([np.nan if segment.get("area") is None else segment["area"] for segment in segments], np.float64)
        return cls(ids, labels, crowd, areas)


def _overlaps(gt_ids: np.ndarray, gt: _Segments, pred_ids: np.ndarray, pred: _Segments, name: str) -> np.ndarray:
    """Pixels that the n segments of the ground truth share with the m predicted ones, float64 (n + 2, m + 1).

    Row n is of the pixels without ground truth, row n + 1 of ids that the ground truth does not list, column m of the pixels
    without prediction.
    """
    if gt_ids.shape[:2] != pred_ids.shape[:2] or not _is_map(gt_ids) or not _is_map(pred_ids):
        raise UserError(
            f"{name}: the predicted map has shape {pred_ids.shape}, the ground truth {gt_ids.shape}: both must be the original "
            "(H, W)"
        )
    gt_runs, pred_runs, lengths = _runs(gt_ids, pred_ids)
    row, column = segment_positions(gt_runs, gt.ids), segment_positions(pred_runs, pred.ids)
    height, width = len(gt.ids) + 2, len(pred.ids) + 2
    table = np.bincount(row * width + column, weights=lengths, minlength=height * width).reshape(height, width)
    check_pixels(table[:, :-2].sum(axis=0), pred_runs[column == width - 1], pred.ids, f"{name} (prediction)")
    return table[:, :-1]


def _is_map(values: np.ndarray) -> bool:
    """Whether these are integers (H, W) or colours (H, W, 3), and not without pixels."""
    colours = values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8
    return bool(values.size) and values.dtype.kind in "iu" and (values.ndim == 2 or colours)


def _runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids of two maps in runs of pixels, row after row, in which neither changes, and the runs' lengths: (r,) each."""
    pixels = first.shape[0] * first.shape[1]
    begins = np.zeros(pixels, bool)
    begins[0] = True
    for values in (first, second):
        flat, step = values.reshape(-1), values.size // pixels
        begins[np.flatnonzero(flat[step:] != flat[:-step]) // step + 1] = True
    starts = np.flatnonzero(begins)
    ids = (
        rgb_to_ids(values.reshape(-1, 3)[starts]) if values.ndim == 3 else values.reshape(-1)[starts]
        for values in (first, second)
    )
    return *ids, np.diff(starts, append=pixels)


def _matches(table: np.ndarray, gt: _Segments, pred: _Segments, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of matching segments in the ground truth and in the prediction, and their IoU: (k,) each."""
    row, column = np.nonzero(table[: len(gt.ids), : len(pred.ids)])
    comparable = (gt.labels[row] == pred.labels[column]) & ~gt.crowd[row]
    row, column = row[comparable], column[comparable]
    shared, void = table[row, column], table[len(gt.ids), column]
    gt_area = np.where(np.isnan(gt.areas), table[: len(gt.ids)].sum(axis=1), gt.areas)[row]
    union = table[:, column].sum(axis=0) + gt_area - shared - void
    if (shared > union).any():
        wrong = int(np.argmax(shared > union))
        raise UserError(
            f"{name} (ground truth): segment id {gt.ids[row[wrong]]} has an area of {gt_area[wrong]:g}, but more pixels in the "
            "map. Correct the area, or leave it out"
        )
    iou = shared / union
    match = iou > 0.5
    return row[match], column[match], iou[match]


def _excused(table: np.ndarray, gt: _Segments, pred: _Segments, num_classes: int) -> np.ndarray:
    """Which predictions lie by more than half on pixels without ground truth and on the crowd of their class, bool (m,)."""
    count = len(pred.ids)
    crowd_row = np.full(num_classes, -1)
    crowd_row[gt.labels[gt.crowd]] = np.flatnonzero(gt.crowd)  # of several the last
    row = crowd_row[pred.labels]
    ignored = table[len(gt.ids), :count] + np.where(row >= 0, table[row, np.arange(count)], 0)
    return ignored / table[:, :count].sum(axis=0) > 0.5


# -- files --------------------------------------------------------------------------------------------------------------------


def evaluate_panoptic(
    gt_json: str | Path,
    gt_dir: str | Path | None,
    pred_json: str | Path,
    pred_dir: str | Path | None,
    processes: int | None = None,
) -> dict[str, float]:
    """Panoptic quality of a COCO panoptic file of results: `PanopticQuality.scores` for the categories of the ground truth.

    Every picture of the ground truth needs a prediction; predictions of other pictures play no part.

    Args:
        gt_json, pred_json: COCO panoptic files; the results need no categories.
        gt_dir, pred_dir: folders of their PNGs. None: named like the file, without ``.json``.
        processes: how many share the pictures. None: as many as there are CPUs and as pay. The result is the same, bit by bit.
            (More than one needs a script that is guarded by ``if __name__ == "__main__":``.)

    Raises:
        UserError: a picture is missing, has another size, or ids and segments do not fit together; names the picture.
    """
    gt, pred = read_panoptic(gt_json, gt_dir), read_panoptic(pred_json, pred_dir)
    categories = check_categories(gt)
    missing = [image_id for image_id in gt.positions if image_id not in pred.positions]
    if missing:
        raise UserError(
            f"{pred.path}: has no prediction of image id {missing[0]!r} ({len(missing)} of {len(gt.positions)} pictures of "
            f"{gt.path} have none). Predict all pictures, if only an empty map"
        )
    total = PanopticQuality(len(categories))
    job = _Job(gt, pred)
    for counts in map_processes(job, gt.positions, "matching segments", False, _PER_PROCESS, chunk=4, processes=processes):
        total.counts += counts
    return total.scores(
        [category["name"] for category in categories], [k for k, category in enumerate(categories) if category["isthing"]]
    )


def check_categories(source: PanopticFile) -> tuple[dict, ...]:
    """The categories of a ground-truth file; UserError when there are none or one does not say whether it is a thing."""
    if not source.categories:
        raise UserError(f"{source.path}: has no 'categories'. Give the ground truth's panoptic file")
    for category in source.categories:
        if "isthing" not in category:
            raise UserError(
                f"{source.path}: category {category['name']!r} has no 'isthing'. Write 1 for things, whose objects are told "
                "apart, 0 for stuff"
            )
    return source.categories


def with_labels(segments: Sequence[Mapping[str, Any]], labels: Mapping[int, int], name: str) -> list[dict[str, Any]]:
    """The segments with ``label``, their category's position; UserError, which begins with `name`, when it has none."""
    for segment in segments:
        if segment.get("category_id") not in labels:
            raise UserError(
                f"{name}: segment id {segment.get('id')} has the unknown category id {segment.get('category_id')!r}. Use the "
                "categories of the ground truth"
            )
    return [{**segment, "label": labels[segment["category_id"]]} for segment in segments]


class _Job:
    """Counts the picture of an image id."""

    def __init__(self, gt: PanopticFile, pred: PanopticFile) -> None:
        self.gt, self.pred = gt, pred
        self.labels = {category["id"]: label for label, category in enumerate(gt.categories)}

    def __call__(self, image_id: Hashable) -> np.ndarray:
        maps = []
        for source in (self.gt, self.pred):
            annotation = source[image_id]
            segments = with_labels(annotation["segments_info"], self.labels, f"{source.path}: image id {image_id}")
            maps += [source.read_colours(annotation), segments]
        return match_segments(*maps, len(self.labels), f"image id {image_id}").counts
