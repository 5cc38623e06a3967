"""Learnt factors of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """A learnt factor for each channel, which starts at `init` (CaiT, arXiv 2103.17239). (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, init: float = 1e-6):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class LayerScale2d(LayerScale):
    """`LayerScale` of maps: (N, dim, H, W) -> (N, dim, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]
