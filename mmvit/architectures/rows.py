"""Large maps that are never whole: resized, cropped and changed a band of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_BAND = 1 << 24  # numbers held at once


@dataclass(frozen=True)
class Rows:
    """A map (K, height, width) of which `fetch(first, end)` makes the rows from `first` to before `end`: (K, rows, width).

    `depth`: the most channels of the maps that are made on the way, besides K.
    """

    channels: int
    height: int
    width: int
    fetch: Callable[[int, int], Tensor]
    depth: int = 0

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """A tensor (K, h, w) as it is."""
        return cls(*x.shape, lambda first, end: x[:, first:end])

    def cropped(self, height: int, width: int) -> Rows:
        """The top left part."""
        return Rows(self.channels, height, width, lambda first, end: self.fetch(first, end)[..., :width], self.depth)

    def mapped(self, function: Callable[[Tensor], Tensor], channels: int) -> Rows:
        """`function` of the bands: (K, rows, width) -> (channels, rows, width)."""
        depth = max(self.channels, self.depth)
        return Rows(channels, self.height, self.width, lambda first, end: function(self.fetch(first, end)), depth)

    def resized(self, height: int, width: int, align_corners: bool = False) -> Rows:
        """Bilinearly, as `torch.nn.functional.interpolate` does it for the whole map."""
        if (height, width) == (self.height, self.width):
            return self

        def fetch(first: int, end: int) -> Tensor:
            y = torch.arange(first, end, dtype=torch.float64)
            if align_corners:
                y = y * ((self.height - 1) / max(height - 1, 1))
            else:
                y = ((y + 0.5) * (self.height / height) - 0.5).clamp(0, self.height - 1)
            low = y.floor().long().clamp(max=self.height - 1)
            high = (low + 1).clamp(max=self.height - 1)
            start = int(low[0])
            source = self.fetch(start, int(high[-1]) + 1)
            if height != self.height:
                part = (y - low).to(source)[:, None]
                low, high = (low - start).to(source.device), (high - start).to(source.device)
                source = torch.lerp(source[:, low], source[:, high], part)
            if width != self.width:
                source = F.interpolate(source[None], (source.shape[1], width), mode="bilinear", align_corners=align_corners)[0]
            return source

        return Rows(self.channels, height, width, fetch, self.depth)

    def bands(self, width: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """All rows, in bands of about 2^24 numbers; `width`: of a wider map that is made on the way."""
        step = max(1, _BAND // (max(self.channels, self.depth) * max(self.width, width or 0)))
        for first in range(0, self.height, step):
            rows = slice(first, min(first + step, self.height))
            yield rows, self.fetch(rows.start, rows.stop)
