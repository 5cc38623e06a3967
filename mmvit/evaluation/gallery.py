"""The pictures on which a model does worst: collected during an evaluation, drawn beside their labels."""

from __future__ import annotations

import bisect
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmvit.data.images import read_image
from mmvit.errors import UserError
from mmvit.evaluation.legend import Colour, colourise, draw_legend, font, shortened

_GAP, _CAPTION, _LETTERS = 8, 24, 14  # pixels
_IGNORED = "not labelled"


@dataclass(order=True)
class _Entry:
    """A picture, ordered by how bad it is; label and prediction compressed."""

    score: float
    img_path: str
    shape: tuple[int, int] = field(compare=False)
    label: tuple[str, bytes] = field(compare=False)
    pred: tuple[str, bytes] = field(compare=False)


class WorstImages:
    """Keeps the `count` pictures with the lowest scores; small enough to be sent between processes.

    A picture that is added again (its path is the same) counts once.
    """

    def __init__(self, count: int = 12) -> None:
        if count < 1:
            raise UserError(f"the gallery must show one picture or more, got {count}")
        self.count = count
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, img_path: str | Path, label: Any, pred: Any, score: float) -> None:
        """Offer a picture: class indices `label` and `pred` (H, W), arrays or tensors (1, H, W). A score of NaN is not kept."""
        key = (score, str(img_path))
        full = len(self._entries) == self.count
        if math.isnan(score) or (full and key >= (self._entries[-1].score, self._entries[-1].img_path)):
            return
        label, pred = _plain(label), _plain(pred)
        self._insert(_Entry(float(score), str(img_path), label.shape, _packed(label), _packed(pred)))

    def _insert(self, entry: _Entry) -> None:
        if not any(entry.img_path == other.img_path for other in self._entries):
            bisect.insort(self._entries, entry)
            del self._entries[self.count :]

    def merge(self, other: WorstImages) -> WorstImages:
        """Take in what `other`, of another process, has kept; returns itself."""
        for entry in other._entries:
            self._insert(entry)
        return self

    def items(self) -> list[dict[str, Any]]:
        """``dict(img_path, label, pred, score)`` of each picture, worst first; what `draw_gallery` takes."""
        return [
            {
                "img_path": entry.img_path,
                "label": _unpacked(entry.label, entry.shape),
                "pred": _unpacked(entry.pred, entry.shape),
                "score": entry.score,
            }
            for entry in self._entries
        ]


def _plain(values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return array.reshape(array.shape[-2:])


def _packed(values: np.ndarray) -> tuple[str, bytes]:
    return values.dtype.str, zlib.compress(values.tobytes(), 1)


def _unpacked(packed: tuple[str, bytes], shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(packed[1]), packed[0]).reshape(shape)


def draw_gallery(
    items: Sequence[Mapping[str, Any]],
    path: str | Path,
    classes: Sequence[str],
    palette: Sequence[Colour],
    cell: int = 420,
) -> None:
    """Draw pictures, their labels and what was predicted, a row each, worst first, to the PNG file `path`.

    Args:
        items: ``dict(img_path, label, pred, score)`` each: label and prediction class indices (H, W) of the same size; label
            values that are no class are shown in black. The score is the picture's mean IoU.
        cell: width of a column, and the greatest height of a row, in pixels.

    Raises:
        UserError: a picture that cannot be read.
    """
    items = sorted(items, key=lambda item: item["score"])
    width = 3 * cell + 4 * _GAP
    parts = [_headings(cell, width)] + [_row(item, palette, cell, width) for item in items]
    if items:
        parts.append(draw_legend(_legend_of(items, classes, palette), _LETTERS, width=width))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.draft.png")
    Image.fromarray(np.concatenate(parts)).save(draft)
    draft.replace(path)


def _headings(cell: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, _CAPTION + _GAP), "white")
    draw = ImageDraw.Draw(image)
    for column, text in enumerate(("picture", "ground truth", "prediction")):
        place = (_GAP + column * (cell + _GAP) + cell // 2, _GAP)
        draw.text(place, text, "black", font=font(_LETTERS + 2), anchor="ma")
    return np.asarray(image)


def _row(item: Mapping[str, Any], palette: Sequence[Colour], cell: int, width: int) -> np.ndarray:
    label, pred = np.asarray(item["label"]), np.asarray(item["pred"])
    height = label.shape[0] * cell / label.shape[1]
    size = (cell, max(1, round(height))) if height <= cell else (max(1, round(cell * cell / height)), cell)
    photo = Image.fromarray(read_image(item["img_path"], upright=False)).resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    maps = [Image.fromarray(colourise(mask, palette)).resize(size, Image.Resampling.NEAREST) for mask in (label, pred)]
    image = Image.new("RGB", (width, _CAPTION + size[1] + _GAP), "white")
    caption = f"mIoU {item['score']:.3f}   {Path(item['img_path']).name}"
    draw = ImageDraw.Draw(image)
    text = shortened(caption, width - 2 * _GAP, _LETTERS)
    draw.text((_GAP, _CAPTION // 2), text, "black", font=font(_LETTERS), anchor="lm")
    for column, part in enumerate((photo, *maps)):
        image.paste(part, (_GAP + column * (cell + _GAP) + (cell - size[0]) // 2, _CAPTION))
    return np.asarray(image)


def _legend_of(
    items: Sequence[Mapping[str, Any]], classes: Sequence[str], palette: Sequence[Colour]
) -> list[tuple[str, Colour]]:
    """Names and colours of what occurs in `items`."""
    values = {int(value) for item in items for key in ("label", "pred") for value in np.unique(item[key])}
    entries = [(classes[value], tuple(palette[value])) for value in sorted(values) if 0 <= value < len(classes)]
    return entries + [(_IGNORED, (0, 0, 0))] * any(not 0 <= value < len(classes) for value in values)
