"""Drawing detections and segmentations onto a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmvit.data.classes import Colour, make_palette
from mmvit.errors import UserError
from mmvit.evaluation.legend import colourise, draw_legend

if TYPE_CHECKING:
    from mmvit.inference.results import Detections, Segmentation

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(
    image: np.ndarray, detections: Detections, classes: Sequence[str] | None = None, opacity: float = 0.5
) -> np.ndarray:
    """Draw boxes with names and scores; masks, where there are any, in their place.

    Args:
        image: uint8 (H, W, 3) RGB; not changed.
        detections: boxes in pixels of `image`, masks of its size.
        classes: names to write in place of those in `detections`.
        opacity: of the masks; 0 shows the picture alone and their outlines, 1 the colours alone.

    Returns:
        uint8 (H, W, 3) RGB. A class has the same colour in every picture; masks of one class have lighter and darker shades of
        it. Lines and letters grow with the picture. Labels stay inside it, off each other where there is room, and those of
        masks inside their masks.
    """
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity is {opacity:g}: give a number from 0 to 1")
    canvas = np.ascontiguousarray(image).copy()
    names = tuple(classes or detections.classes)
    palette = make_palette(len(names))
    colours = [palette[label] for label in detections.labels]
    thickness = max(1, round(max(canvas.shape[:2]) / 400))
    order = np.argsort(detections.scores, kind="stable")  # best last, on top
    boxes = [_inside(detections.boxes[i], canvas.shape) for i in range(len(detections))]
    middles: dict[int, tuple[int, int]] = {}  # inside the masks
    if detections.masks is not None:
        colours = _shades(detections.labels, palette)
        middles = {i: _draw_mask(canvas, detections.mask(i), colours[i], opacity, thickness) for i in order}
    else:
        for i in order:
            x1, y1, x2, y2 = boxes[i]
            cv2.rectangle(canvas, (x1, y1), (x2, y2), colours[i], thickness, cv2.LINE_AA)
    taken: list[Rectangle] = []
    plates = []
    for i in order[::-1]:  # the best choose their place first
        text = f"{names[detections.labels[i]]} {100 * detections.scores[i]:.0f}%"
        plate = _Plate(text, canvas.shape)
        plate.place(boxes[i], taken, middles.get(i))
        taken.append(plate.rectangle)
        plates.append((plate, colours[i]))
    for plate, colour in reversed(plates):
        plate.draw(canvas, colour)
    return canvas


def _shades(labels: np.ndarray, palette: Sequence[Colour]) -> list[Colour]:
    """A colour for each object: that of its class for the first one, then lighter and darker ones in turn."""
    seen: Counter[int] = Counter()
    shades = []
    for label in labels.tolist():
        number = seen[label]
        seen[label] += 1
        strength = 0.25 * (-(-number // 2) % 4)
        shades.append(tuple(round(part + ((255 if number % 2 else 0) - part) * strength) for part in palette[label]))
    return shades


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: Colour, opacity: float, thickness: int) -> tuple[int, int] | None:
    """Lay a mask, bool (H, W), and its outline over `canvas`, in place; the point (x, y) of it farthest from its border."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    part = np.s_[top : rows[-1] + 1, left : columns[-1] + 1]
    inside, region = mask[part], canvas[part]
    region[inside] = np.rint((1 - opacity) * region[inside] + opacity * np.array(colour)).astype(np.uint8)
    framed = np.pad(inside, 1).astype(np.uint8)  # the edge of the picture is a border, too
    outlines, _ = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, colour, thickness, cv2.LINE_AA, offset=(left - 1, top - 1))
    y, x = np.unravel_index(cv2.distanceTransform(framed, cv2.DIST_L2, 3).argmax(), framed.shape)
    return left + int(x) - 1, top + int(y) - 1


def _inside(box: np.ndarray, shape: Sequence[int]) -> Rectangle:
    """Whole pixels within the picture."""
    height, width = shape[:2]
    x1, x2 = np.clip(np.rint(box[[0, 2]]), 0, width - 1).astype(int).tolist()
    y1, y2 = np.clip(np.rint(box[[1, 3]]), 0, height - 1).astype(int).tolist()
    return x1, y1, x2, y2


class _Plate:
    """A filled rectangle with text."""

    def __init__(self, text: str, shape: Sequence[int]) -> None:
        self.text = _printable(text)
        self.height, self.width = shape[:2]
        self.scale = min(max(max(shape[:2]) / 1600, 0.4), 3.0)
        self.thickness = max(1, round(self.scale * 1.6))
        (text_width, text_height), baseline = cv2.getTextSize(self.text, _FONT, self.scale, self.thickness)
        self.margin = max(2, round(3 * self.scale))
        self.baseline = baseline
        self.size = (text_width + 2 * self.margin, text_height + baseline + 2 * self.margin)
        self.rectangle: Rectangle = (0, 0, *self.size)

    def place(self, box: Rectangle, taken: Sequence[Rectangle], middle: tuple[int, int] | None = None) -> None:
        """Choose, of `middle` (x, y) and the corners of `box`, the first that covers no other label, else the one that covers
        least.
        """
        x1, y1, x2, y2 = box
        width, height = self.size
        corners = [] if middle is None else [(middle[0] - width // 2, middle[1] - height // 2)]
        corners += [
            (x1, y1 - height),
            (x1, y1),
            (x2 - width, y1 - height),
            (x1, y2),
            (x2 - width, y2),
            (x1, y2 - height),
            (x2 - width, y1),
            (x2 - width, y2 - height),
        ]
        rectangles = [self._shifted_inside(x, y) for x, y in corners]
        self.rectangle = min(rectangles, key=lambda place: sum(_overlap(place, other) for other in taken))

    def _shifted_inside(self, x: int, y: int) -> Rectangle:
        x = max(0, min(x, self.width - self.size[0]))
        y = max(0, min(y, self.height - self.size[1]))
        return x, y, x + self.size[0], y + self.size[1]

    def draw(self, canvas: np.ndarray, colour: tuple[int, int, int]) -> None:
        x1, y1, x2, y2 = self.rectangle
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, cv2.FILLED)
        cv2.putText(
            canvas,
            self.text,
            (x1 + self.margin, y2 - self.margin - self.baseline),
            _FONT,
            self.scale,
            _readable_on(colour),
            self.thickness,
            cv2.LINE_AA,
        )


def _printable(text: str) -> str:
    """OpenCV's fonts have ASCII letters only."""
    return text.encode("ascii", "replace").decode()


def _readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, by the luminance of the ground (ITU-R BT.601)."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)


def _overlap(a: Rectangle, b: Rectangle) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def draw_segmentation(
    image: np.ndarray, segmentation: Segmentation, opacity: float = 0.5, legend_rows: int | None = None
) -> np.ndarray:
    """Lay the classes over a picture in their colours, with thin borders between them and a legend beside or below it.

    Args:
        image: uint8 (H, W, 3) RGB, of the size of the segmentation; not changed.
        opacity: 0 shows the picture alone, 1 the colours alone.
        legend_rows: put the legend below and give it exactly this many rows, so that all frames of a video have one size.
            None: as many as it needs, below a wide picture, beside an upright or a small one.

    Returns:
        uint8 (h, w, 3) RGB: the picture at its size in the upper left corner, and on white the legend, which names the classes
        that occur and their share of the picture, the largest first.
    """
    if image.shape[:2] != segmentation.image_size:
        raise UserError(f"a segmentation of {segmentation.image_size} (height, width) on a picture of {image.shape[:2]}")
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity is {opacity:g}: give a number from 0 to 1")
    colours = colourise(segmentation.mask, segmentation.palette)
    overlay = cv2.addWeighted(np.ascontiguousarray(image), 1 - opacity, colours, opacity, 0)
    if opacity > 0:
        _draw_borders(overlay, segmentation.mask)
    height, width = image.shape[:2]
    entries = [
        (f"{segmentation.classes[label]}  {percent(count / segmentation.mask.size)}", segmentation.palette[label])
        for label, count in segmentation.pixels().items()
    ]
    size = int(np.clip(max(height, width) / 55, 11, 40))  # of the letters
    if legend_rows is not None or (width >= height and width >= 30 * size):
        return np.concatenate([overlay, draw_legend(entries, size, width=width, rows=legend_rows)])
    return _beside(overlay, draw_legend(entries, size, height=max(height, 12 * size)))


def _draw_borders(overlay: np.ndarray, mask: np.ndarray) -> None:
    """White lines where two classes meet; in place. Lines grow with the picture."""
    border = np.zeros(mask.shape, bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    thickness = max(1, round(max(mask.shape) / 1000))
    if thickness > 1:
        border = cv2.dilate(border.astype(np.uint8), np.ones((thickness, thickness), np.uint8)).astype(bool)
    overlay[border] = 255


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures side by side, white below the lower one."""
    canvas = np.full((max(len(left), len(right)), left.shape[1] + right.shape[1], 3), 255, np.uint8)
    canvas[: len(left), : left.shape[1]] = left
    canvas[: len(right), left.shape[1] :] = right
    return canvas


def percent(share: float) -> str:
    """A share (0..1) as people read it: ``41%``, ``0.3%``, ``<0.1%``."""
    value = 100 * share
    return f"{value:.0f}%" if value >= 1 else f"{value:.1f}%" if value >= 0.1 else "<0.1%"
