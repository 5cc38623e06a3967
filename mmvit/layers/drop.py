"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, drops a residual branch for each sample with probability `rate` and scales the others by 1 / (1 - rate).

    Source: "Deep Networks with Stochastic Depth" (arXiv 1603.09382). Any shape with the batch first.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = float(rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        keep = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def drop_rates(rate: float, depths: list[int] | tuple[int, ...]) -> list[list[float]]:
    """Rates that rise linearly from 0 to `rate` over all blocks, as one list per stage."""
    rates = iter(torch.linspace(0, rate, sum(depths), device="cpu").tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]
