"""Shades of a class's colour, so that its objects can be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import cv2
import numpy as np

from mmvit.data.classes import Colour

_LIGHTNESS = (40, 53, 66, 79)  # CIE L*, from 0 to 100
_TURNS = (-40, -20, 0, 20, 40)  # of the hue, degrees
_CHROMA = (1.0, 0.7)
_LEAST_CHROMA = 45  # of shades, so that grey has some that differ in hue


def shades(labels: Iterable[int], palette: Sequence[Colour]) -> list[Colour]:
    """A colour for each object: that of its class for the first one, then shades of it, the most different ones first."""
    seen: Counter[int] = Counter()
    colours = []
    for label in labels:
        choice = _shades_of(tuple(palette[label]))
        colours.append(choice[seen[label] % len(choice)])
        seen[label] += 1
    return colours


@lru_cache(maxsize=256)
def _shades_of(colour: Colour) -> tuple[Colour, ...]:
    """`colour`, and lighter, darker, paler and slightly turned ones, each as far as possible from all before it (CIELAB)."""
    _, a, b = _to_lab(np.array([colour], np.float32))[0]
    hue, chroma = np.arctan2(b, a), np.hypot(a, b)
    grid = [
        (light, strength * np.cos(angle), strength * np.sin(angle))
        for light in _LIGHTNESS
        for strength in (max(_LEAST_CHROMA, factor * chroma) for factor in _CHROMA)
        for angle in (hue + np.deg2rad(turn) for turn in _TURNS)
    ]
    rgb = cv2.cvtColor(np.array([grid], np.float32), cv2.COLOR_LAB2RGB)[0]
    candidates = np.rint(255 * np.clip(rgb, 0, 1)).astype(np.float32)
    lab = _to_lab(candidates)
    chosen = [tuple(int(part) for part in colour)]
    distance = np.linalg.norm(lab - _to_lab(np.array([colour], np.float32)), axis=1)
    while distance.max() > 1:
        best = int(distance.argmax())
        chosen.append(tuple(int(part) for part in candidates[best]))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return tuple(chosen)


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """Colours (n, 3) from 0 to 255 -> CIELAB, float32 (n, 3)."""
    return cv2.cvtColor(rgb[None] / 255, cv2.COLOR_RGB2LAB)[0]
