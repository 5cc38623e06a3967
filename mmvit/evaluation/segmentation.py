"""Intersection over union and accuracy of semantic segmentation, from a confusion matrix that grows picture by picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmvit.errors import UserError

_EXACT = 1 << 23  # pixels counted at once by OpenCV, whose float32 counts are exact up to 2**24
_WIDE = 1 << 20  # pixels counted at once where values need more than a byte, for the memory of their int64 codes


def count_pixels(
    pred: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int = 255, name: str = "picture"
) -> np.ndarray:
    """The confusion matrix of one picture.

    Args:
        pred, label: integers (H, W); fastest as uint8.
        name: what to call the picture in errors.

    Returns:
        int64 (num_classes, num_classes); a row is a class of the label, a column a predicted class.

    Raises:
        UserError: the two differ in size, a label is neither a class nor `ignore_index`, or something else than a class is
            predicted on a pixel that counts.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape or pred.ndim != 2:
        raise UserError(
            f"{name}: the prediction has shape {pred.shape}, the label {label.shape}: both must be the original (H, W)"
        )
    pred_bytes, label_bytes = _as_bytes(pred), _as_bytes(label)
    if num_classes <= 256 and pred_bytes is not None and label_bytes is not None:
        counts = _count_bytes(pred_bytes, label_bytes, num_classes, ignore_index)
    else:
        counts = _count_wide(pred, label, num_classes, ignore_index)
    if counts is None:
        raise _stray(pred, label, num_classes, ignore_index, name)
    return counts


def _as_bytes(values: np.ndarray) -> np.ndarray | None:
    """Integers as uint8; None where they do not fit."""
    if values.dtype == np.uint8:
        return values
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        return None
    return values.astype(np.uint8)


def _count_bytes(pred: np.ndarray, label: np.ndarray, size: int, ignored: int) -> np.ndarray | None:
    """Counts of uint8 arrays; None where a pixel that counts has a value that is no class."""
    table = np.zeros((256, 256), np.int64)
    rows = max(1, _EXACT // max(1, pred.shape[1]))
    for start in range(0, len(pred), rows):
        pair = [np.ascontiguousarray(part[start : start + rows]) for part in (label, pred)]
        table += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    if 0 <= ignored < 256:
        table[ignored] = 0
    counts = table[:size, :size]
    return counts.copy() if counts.sum() == table.sum() else None


def _count_wide(pred: np.ndarray, label: np.ndarray, size: int, ignored: int) -> np.ndarray | None:
    """Counts of integers of any width; None as in `_count_bytes`."""
    counts = np.zeros(size * size, np.int64)
    pred, label = pred.reshape(-1), label.reshape(-1)
    for start in range(0, len(pred), _WIDE):
        found, true = (part[start : start + _WIDE].astype(np.int64) for part in (pred, label))
        keep = true != ignored
        found, true = found[keep], true[keep]
        if len(true) and (min(found.min(), true.min()) < 0 or max(found.max(), true.max()) >= size):
            return None
        counts += np.bincount(true * size + found, minlength=size * size)
    return counts.reshape(size, size)


def _stray(pred: np.ndarray, label: np.ndarray, size: int, ignored: int, name: str) -> UserError:
    """The error about values that are no classes."""

    def wrong(values: np.ndarray) -> np.ndarray:
        return (label != ignored) & ((values < 0) | (values >= size))

    in_label = wrong(label)
    where = in_label if in_label.any() else wrong(pred)
    row, column = np.unravel_index(where.argmax(), where.shape)
    value = int((label if in_label.any() else pred)[row, column])
    return UserError(
        f"{name}: {int(where.sum())} pixels are {'labelled' if in_label.any() else 'predicted'} as what is no class, the first "
        f"(row {row}, column {column}) as {value}. There are {size} classes, 0 to {size - 1}, and label {ignored} is ignored. "
        + (
            "Correct the mask, or how the dataset reads it"
            if in_label.any()
            else "Model and dataset disagree on the number of classes"
        )
    )


class ConfusionMatrix:
    """Counts pixels by (class in the label, class predicted).

    Args:
        num_classes: values 0 .. num_classes - 1 are classes.
        ignore_index: label value of pixels that do not count, whatever is predicted there.

    Attributes:
        counts: int64 (num_classes, num_classes); a row is a class of the label, a column a predicted class.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise UserError(f"a confusion matrix needs at least one class, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise UserError(
                f"ignore_index {ignore_index} is one of the {num_classes} classes: its pixels would not count. Give a value "
                f"from {num_classes} on, or -1"
            )
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, pred: np.ndarray, label: np.ndarray, name: str = "picture") -> np.ndarray:
        """Count one picture, see `count_pixels`; returns the picture's own counts, int64 (num_classes, num_classes)."""
        counts = count_pixels(pred, label, self.num_classes, self.ignore_index, name)
        self.counts += counts
        return counts

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add the counts of another matrix of the same classes; returns itself."""
        if other.counts.shape != self.counts.shape:
            raise UserError(f"confusion matrices of {self.num_classes} and {other.num_classes} classes cannot be added")
        self.counts += other.counts
        return self

    def scores(self) -> dict[str, Any]:
        """``mIoU``, ``mAcc``, ``aAcc`` (floats), ``IoU`` and ``Acc`` (float64 arrays by class); fractions 0..1.

        IoU is TP / (TP + FP + FN), Acc is TP / (TP + FN), aAcc is the share of pixels that are right. NaN: IoU of a class that
        neither occurs nor is predicted, Acc of one that does not occur. The means leave NaN out.
        """
        return scores_of(self.counts)


def scores_of(counts: np.ndarray) -> dict[str, Any]:
    """`ConfusionMatrix.scores` of counts (C, C)."""
    right, labelled = np.diagonal(counts).astype(np.float64), counts.sum(axis=1)
    iou = _ratio(right, labelled + counts.sum(axis=0) - np.diagonal(counts))
    acc = _ratio(right, labelled)
    total = int(labelled.sum())
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(acc),
        "aAcc": float(right.sum() / total) if total else float("nan"),
        "IoU": iou,
        "Acc": acc,
    }


def picture_miou(counts: np.ndarray) -> float:
    """Mean IoU of one picture over the classes that occur in its label, from its counts (C, C); NaN where none does."""
    present = counts.sum(axis=1) > 0
    return _mean(scores_of(counts)["IoU"][present])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN
        return float(np.nanmean(values)) if len(values) else float("nan")


def confusion_picture(matrix: ConfusionMatrix | np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw what the pixels of each class are taken for, in percent of the class, to the PNG file `path`.

    Up to 25 classes have their figures written into the cells; of more than 200 only every tenth has its name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = matrix.counts if isinstance(matrix, ConfusionMatrix) else np.asarray(matrix)
    labelled = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, labelled, out=np.full(counts.shape, np.nan), where=labelled > 0)
    count = len(classes)
    cell = 0.42 if count <= 25 else 0.24 if count <= 60 else 0.11 if count <= 200 else 20 / count  # inches
    side, margin = max(2.0, cell * count), 0.6 + 0.08 * min(24, max(map(len, classes), default=1))
    width, height = side + margin + 1.0, side + margin + 0.5
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    axes.set_facecolor("0.85")  # classes that do not occur
    norm = PowerNorm(0.6, vmin=0, vmax=1)  # rare confusions show as well
    image = axes.imshow(share, norm=norm, cmap="Blues", interpolation="nearest", aspect="auto")
    bar = figure.add_axes(((margin + side + 0.15) / width, margin / height, 0.15 / width, side / height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=8)
    step, size = (10, 6) if count > 200 else (1, min(9.0, 72 * cell * 0.85))
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes][::step]
    axes.set_xticks(range(0, count, step), names, rotation=90, fontsize=size)
    axes.set_yticks(range(0, count, step), names, fontsize=size)
    axes.tick_params(length=0 if count > 60 else 2)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("labelled", fontsize=10)
    axes.set_title("share of each class's pixels" + (" in %" if count <= 25 else ""), fontsize=10)
    if count <= 25:
        for row, column in zip(*np.nonzero(np.nan_to_num(share) >= 0.005)):
            value = share[row, column]
            colour = "white" if value > 0.4 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.draft.png")
    figure.savefig(draft)
    draft.replace(path)
