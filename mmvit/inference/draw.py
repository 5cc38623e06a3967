"""Drawing detections, classes and segments onto a picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmvit.data.classes import Colour, make_palette
from mmvit.errors import UserError
from mmvit.evaluation.legend import colourise, draw_legend
from mmvit.inference.labels import Plate, Rectangle, letter_size
from mmvit.inference.shades import shades

if TYPE_CHECKING:
    from mmvit.inference.results import Detections, PanopticSegmentation, Segmentation


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
        colours = shades(detections.labels, palette)
        middles = {i: _draw_mask(canvas, detections.mask(i), colours[i], opacity, thickness) for i in order}
    else:
        for i in order:
            x1, y1, x2, y2 = boxes[i]
            cv2.rectangle(canvas, (x1, y1), (x2, y2), colours[i], thickness, cv2.LINE_AA)
    taken: list[Rectangle] = []
    plates = []
    for i in order[::-1]:  # the best choose their place first
        text = f"{names[detections.labels[i]]} {100 * detections.scores[i]:.0f}%"
        plate = Plate(text, canvas.shape)
        plate.place(boxes[i], taken, middles.get(i))
        taken.append(plate.rectangle)
        plates.append((plate, colours[i]))
    for plate, colour in reversed(plates):
        plate.draw(canvas, colour)
    return canvas


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
    colours = colourise(segmentation.mask, segmentation.palette)
    overlay = _laid_over(image, colours, segmentation.mask, opacity)
    entries = [
        (f"{short(segmentation.classes[label])}  {percent(count / segmentation.mask.size)}", segmentation.palette[label])
        for label, count in segmentation.pixels().items()
    ]
    return _with_legend(overlay, entries, legend_rows)


def draw_panoptic(
    image: np.ndarray, found: PanopticSegmentation, opacity: float = 0.5, legend_rows: int | None = None
) -> np.ndarray:
    """Lay the segments over a picture, with thin borders between them, names in them and a legend beside or below it.

    Args:
        image: uint8 (H, W, 3) RGB, of the size of the segmentation; not changed.
        opacity: 0 shows the picture alone with the names, 1 the colours alone.
        legend_rows: see `draw_segmentation`.

    Returns:
        uint8 (h, w, 3) RGB: the picture at its size in the upper left corner, and on white the legend. Stuff has the colour of
        its class, as has the first object of a class; the others have shades of it. Pixels without a segment show the picture.
        A name stands in the middle of its segment, where there is room for it; the legend names all classes with the number of
        objects and their share of the picture, the largest first.
    """
    positions = found.positions()
    colours = shades((segment.label for segment in found.segments), found.palette)
    table = np.array([*colours, (0, 0, 0)], np.uint8)
    overlay = _laid_over(image, table[positions], positions, opacity, none=len(found))
    _draw_names(overlay, found, positions)
    return _with_legend(overlay, _panoptic_legend(found), legend_rows)


def _draw_names(canvas: np.ndarray, found: PanopticSegmentation, positions: np.ndarray) -> None:
    """Write the class of each segment into it where it has room, in place; the largest segments choose first."""
    taken: list[Rectangle] = []
    size = letter_size(canvas.shape)
    sizes = sorted({size, max(11, round(0.75 * size))}, reverse=True)
    for index in sorted(range(len(found)), key=lambda i: -found.segments[i].area):
        x1, y1, x2, y2 = found.boxes[index].tolist()
        mask = positions[y1:y2, x1:x2] == index
        plates = (Plate(short(found.segments[index].name), canvas.shape, letters) for letters in sizes)
        plate = next((plate for plate in plates if plate.place_within(mask, (x1, y1), taken)), None)
        if plate is not None:
            plate.draw_dark(canvas)
            taken.append(plate.rectangle)


def _panoptic_legend(found: PanopticSegmentation) -> list[tuple[str, Colour]]:
    """Each class with the number of its objects and its share of the picture."""
    count = Counter(segment.label for segment in found.segments if segment.isthing)
    entries = []
    for label, pixels in found.pixels().items():
        many = f" ×{count[label]}" if count[label] > 1 else ""
        entries.append((f"{short(found.classes[label])}{many}  {percent(pixels / found.ids.size)}", found.palette[label]))
    if found.void:
        entries.append((f"no segment  {percent(found.void / found.ids.size)}", (255, 255, 255)))
    return entries


def short(name: str) -> str:
    """A class name without the endings by which COCO marks how it was made: ``sky`` for ``sky-other-merged``."""
    return re.sub(r"(-other)?(-merged|-stuff|-other)$", "", name)


def _laid_over(
    image: np.ndarray, colours: np.ndarray, regions: np.ndarray, opacity: float, none: int | None = None
) -> np.ndarray:
    """Colours (H, W, 3) over a picture, with borders between its `regions` (H, W); the region `none` stays uncovered."""
    if image.shape[:2] != regions.shape:
        raise UserError(f"a segmentation of {regions.shape} (height, width) on a picture of {image.shape[:2]}")
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity is {opacity:g}: give a number from 0 to 1")
    overlay = cv2.addWeighted(np.ascontiguousarray(image), 1 - opacity, colours, opacity, 0)
    if none is not None:
        np.copyto(overlay, image, where=(regions == none)[..., None])
    if opacity > 0:
        _draw_borders(overlay, regions)
    return overlay


def _with_legend(overlay: np.ndarray, entries: Sequence[tuple[str, Colour]], rows: int | None) -> np.ndarray:
    """The picture with a legend below it, of exactly so many `rows`, or where it suits."""
    height, width = overlay.shape[:2]
    size = letter_size(overlay.shape)
    if rows is not None or (width >= height and width >= 30 * size):
        return np.concatenate([overlay, draw_legend(entries, size, width=width, rows=rows)])
    return _beside(overlay, draw_legend(entries, size, height=max(height, 12 * size)))


def _draw_borders(overlay: np.ndarray, regions: np.ndarray) -> None:
    """White lines with a dark edge where two regions meet; in place. Lines grow with the picture."""
    border = np.zeros(regions.shape, bool)
    border[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    border[1:] |= regions[1:] != regions[:-1]
    thickness = max(1, round(max(regions.shape) / 1000))
    line, around = (
        cv2.dilate(border.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool) for side in (thickness, 3 * thickness)
    )
    overlay[around] = overlay[around] // 5 * 3
    overlay[line] = 255


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures side by side, white below the lower one."""
    canvas = np.full((max(len(left), len(right)), left.shape[1] + right.shape[1], 3), 255, np.uint8)
    canvas[: len(left), : left.shape[1]] = left
    canvas[: len(right), left.shape[1] :] = right
    return canvas


def percent(share: float) -> str:
    """A share (0..1) as people read it: ``41%``, ``0.3%``, ``<0.1%``."""
    value = 100 * share
    return f"{value:.0f}%" if value >= 0.95 else f"{value:.1f}%" if value >= 0.1 else "<0.1%"
