"""The arrays that goldens of mask classifiers describe by seeds: predictions, features and targets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def digest(array: np.ndarray) -> str:
    """SHA-256 of the array's bytes in C order, as float32 or int32."""
    kind = np.float32 if np.issubdtype(np.asarray(array).dtype, np.floating) else np.int32
    return hashlib.sha256(np.ascontiguousarray(array, dtype=kind).tobytes()).hexdigest()


def _on_squares(values: np.ndarray, cell: int, height: int, width: int) -> np.ndarray:
    """(..., rows, columns) -> (..., height, width): each value fills a square of side `cell`."""
    return values.repeat(cell, -2).repeat(cell, -1)[..., :height, :width]


def mask_logits(
    queries: int,
    height: int,
    width: int,
    seed: int,
    cell: int = 8,
    scale: float = 6.0,
    shift: float = 0.0,
    noise: float = 0.5,
    twins: int = 0,
) -> np.ndarray:
    """Mask logits (queries, height, width); the first `twins` odd queries nearly repeat the ones before them."""
    random = np.random.RandomState(seed)
    squares = random.standard_normal((queries, -(-height // cell), -(-width // cell)))
    logits = scale * _on_squares(squares, cell, height, width) + shift
    logits = logits + noise * random.standard_normal(logits.shape)
    for i in range(twins):
        logits[2 * i + 1] = logits[2 * i] + 0.1 * random.standard_normal((height, width))
    return logits.astype(np.float32)


def class_logits(
    queries: int,
    classes: int,
    seed: int,
    palette: Sequence[int],
    low: float = 0.0,
    high: float = 12.0,
    void: float = 0.0,
) -> np.ndarray:
    """Class logits (queries, classes + 1): noise, and `low` to `high` more for one class of `palette` in each row."""
    random = np.random.RandomState(seed)
    logits = random.standard_normal((queries, classes + 1))
    favourites = np.asarray(palette)[random.randint(0, len(palette), queries)]
    logits[np.arange(queries), favourites] += random.uniform(low, high, queries)
    logits[:, -1] += void
    return logits.astype(np.float32)


def features(channels: int, height: int, width: int, seed: int) -> np.ndarray:
    """Pixel features (channels, height, width) of length 1."""
    values = np.random.RandomState(seed).standard_normal((channels, height, width))
    return (values / np.sqrt((values**2).sum(0, keepdims=True))).astype(np.float32)


def segments(
    height: int, width: int, seed: int, palette: Sequence[int], count: int, cell: int = 8, void: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and disjoint masks (n, height, width) of up to `count` segments; the share `void` belongs to none."""
    random = np.random.RandomState(seed)
    grid = (-(-height // cell), -(-width // cell))
    owner = random.randint(0, count, grid)
    owner[random.uniform(size=grid) < void] = count
    owner = _on_squares(owner, cell, height, width)
    labels = np.asarray(palette)[random.randint(0, len(palette), count)]
    present = [i for i in range(count) if (owner == i).any()]
    return labels[present].astype(np.int64), np.stack([owner == i for i in present])


def uniform(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Float32 numbers strictly between 0 and 1, which stand for every draw of that shape."""
    return np.random.RandomState(seed).uniform(1e-6, 1 - 1e-6, tuple(shape)).astype(np.float32)
