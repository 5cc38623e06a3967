"""Label maps in colour, and legends that name the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


def colourise(mask: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Class indices (H, W) -> uint8 (H, W, 3) RGB. What is no class of `palette` (ignored pixels) is black."""
    table = np.zeros((max(len(palette), 255) + 1, 3), np.uint8)
    table[: len(palette)] = palette
    return table[np.where((mask >= 0) & (mask < len(palette)), mask, len(table) - 1)]


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """A sans-serif font whose letters are about `size` pixels high."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def shortened(text: str, width: int, size: int) -> str:
    """`text`, cut so that it fits into `width` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""


def draw_legend(
    entries: Sequence[tuple[str, Colour]],
    size: int = 13,
    width: int | None = None,
    height: int | None = None,
    rows: int | None = None,
) -> np.ndarray:
    """A legend on white: for each (text, colour) a field of that colour with the text beside it.

    Args:
        size: height of the letters in pixels.
        width: fill rows of this width. height: fill columns of at most this height instead, as wide as they need to be (one row
            at least).
        rows: with `width`, exactly so many rows: blank ones where there are fewer entries, and a note of how many are left out
            where there are more.

    Returns:
        uint8 (h, w, 3) RGB.
    """
    line, field, gap = round(1.5 * size), round(1.1 * size), round(0.5 * size)
    column = max((math.ceil(font(size).getlength(text)) for text, _ in entries), default=0) + field + 3 * gap
    if width is None:
        down = max(1, ((height or line) - 2 * gap) // line)
        across = max(1, math.ceil(len(entries) / down))
        down = min(down, max(1, len(entries)))
        width = across * column + 2 * gap
    else:
        column = min(column, width - 2 * gap)
        across = max(1, (width - 2 * gap) // max(1, column))
        column = (width - 2 * gap) // across
        down = rows or max(1, math.ceil(len(entries) / across))
    by_row = height is None
    shown, note = list(entries), ""
    if len(shown) > across * down:
        note = f"+ {len(shown) - across * down + 1} more"
        shown = shown[: across * down - 1]
    image = Image.new("RGB", (width, down * line + 2 * gap), "white")
    draw = ImageDraw.Draw(image)
    for index in range(len(shown) + bool(note)):
        y, x = divmod(index, across) if by_row else (index % down, index // down)
        left, top = gap + x * column, gap + y * line
        text = note if index == len(shown) else shown[index][0]
        if index < len(shown):
            box = (left, top + (line - field) // 2, left + field, top + (line + field) // 2)
            draw.rectangle(box, fill=shown[index][1], outline=(90, 90, 90))
        room = column - field - 2 * gap
        draw.text(
            (left + field + gap, top + line // 2), shortened(text, room, size), (20, 20, 20), font=font(size), anchor="lm"
        )
    return np.asarray(image)
