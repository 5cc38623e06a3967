"""Names on pictures: plates of text, and the places where they have room."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from mmvit.data.classes import Colour
from mmvit.evaluation.legend import font

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels

_DARK = 165  # how dark the field of `Plate.draw_dark` is, to 255
_GRID = 256  # places are looked for on a mask of about so many pixels a side


def letter_size(shape: Sequence[int]) -> int:
    """Height in pixels of the letters on and beside a picture of `shape` (height, width); they grow with it."""
    return int(np.clip(max(shape[:2]) / 55, 11, 40))


class Plate:
    """A filled rectangle with text, inside a picture of `shape` (height, width). `size`: of the letters in pixels."""

    def __init__(self, text: str, shape: Sequence[int], size: int | None = None) -> None:
        self.text = text
        self.height, self.width = shape[:2]
        self.font = font(letter_size(shape) if size is None else size)
        self.margin = max(2, round(self.font.size / 4))
        self.size = (math.ceil(self.font.getlength(text)) + 2 * self.margin, round(1.25 * self.font.size) + self.margin)
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
        self.rectangle = min(rectangles, key=lambda place: sum(overlap(place, other) for other in taken))

    def place_within(self, mask: np.ndarray, corner: tuple[int, int], taken: Sequence[Rectangle], covered: float = 0.9) -> bool:
        """Choose the middle of a mask; False, and nothing is chosen, where the label has no room there.

        Args:
            mask: bool (h, w), the part of the picture's mask whose upper left pixel is at `corner` (x, y).
            taken: places of other labels, which are left free.
            covered: least share of the label that lies on the mask.
        """
        step = max(1, max(mask.shape) // _GRID)
        grid = np.pad(mask[::step, ::step], 1).astype(np.uint8)  # what is around the mask, the picture's edge too, is outside
        width, height = (max(1, round(side / step)) for side in self.size)
        share = cv2.boxFilter(grid, cv2.CV_32F, (width, height), normalize=True, borderType=cv2.BORDER_CONSTANT)
        room = cv2.distanceTransform(grid, cv2.DIST_L2, 3)
        room[share < covered] = 0
        left, top = (  # of the label in the middle of each column and row
            (np.arange(side) - 1) * step + start - size // 2 for side, start, size in zip(grid.shape[::-1], corner, self.size)
        )
        room[:, (left < 0) | (left + self.size[0] > self.width)] = 0
        room[(top < 0) | (top + self.size[1] > self.height)] = 0
        for x1, y1, x2, y2 in taken:
            beside = (left < x2) & (left + self.size[0] > x1)
            room[np.ix_((top < y2) & (top + self.size[1] > y1), beside)] = 0
        y, x = np.unravel_index(room.argmax(), room.shape)
        if not room[y, x]:
            return False
        self.rectangle = self._at(int(left[x]), int(top[y]))
        return True

    def _shifted_inside(self, x: int, y: int) -> Rectangle:
        return self._at(max(0, min(x, self.width - self.size[0])), max(0, min(y, self.height - self.size[1])))

    def _at(self, x: int, y: int) -> Rectangle:
        return x, y, x + self.size[0], y + self.size[1]

    def draw(self, canvas: np.ndarray, colour: Colour) -> None:
        """Draw it filled with `colour` on uint8 (H, W, 3), in place; what would be outside is cut off."""
        self._paste(canvas, Image.new("RGB", self.size, colour), readable_on(colour))

    def draw_dark(self, canvas: np.ndarray) -> None:
        """Draw it in white on a rounded field of the picture's own pixels, darkened, in place."""
        x1, y1, x2, y2 = self.rectangle
        field = Image.new("L", (4 * self.size[0], 4 * self.size[1]))
        ImageDraw.Draw(field).rounded_rectangle((0, 0, field.width - 1, field.height - 1), 4 * self.size[1] // 4, fill=_DARK)
        below = Image.fromarray(canvas[y1:y2, x1:x2])
        below.paste((0, 0, 0), (0, 0), field.resize(self.size, Image.Resampling.BOX))
        self._paste(canvas, below, (255, 255, 255))

    def _paste(self, canvas: np.ndarray, plate: Image.Image, ink: Colour) -> None:
        x1, y1, x2, y2 = self.rectangle
        middle = (self.size[0] / 2, self.size[1] / 2)
        ImageDraw.Draw(plate).text(middle, self.text, ink, font=self.font, anchor="mm")
        region = canvas[y1:y2, x1:x2]
        region[:] = np.asarray(plate)[: region.shape[0], : region.shape[1]]


def readable_on(colour: Colour) -> Colour:
    """Black or white: the one with the greater contrast to `colour` (WCAG's relative luminance)."""
    linear = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def overlap(a: Rectangle, b: Rectangle) -> int:
    """Pixels that two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
