"""Multi-layer perceptrons."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them. (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(dims[:-1], dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """The transformer's two linear layers with GELU (exact) between them. (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FeedForward2d(nn.Module):
    """`FeedForward` of maps: its layers are 1x1 convolutions. (N, dim, H, W) -> (N, dim, H, W).

    `relu` puts a ReLU in place of the GELU.
    """

    def __init__(self, dim: int, hidden_dim: int, relu: bool = False):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.relu(x, inplace=True) if self.relu else F.gelu(x))


class ConvFeedForward(FeedForward):
    """`FeedForward` with a 3x3 depthwise convolution before the GELU, which tells positions. (N, h, w, dim) -> (N, h, w, dim).

    Sources: SegFormer's Mix-FFN (arXiv 2105.15203, equation 3, without its residual), PVT v2 (arXiv 2106.13797); `relu` adds
    a ReLU before the convolution, as in PVT v2 with linear attention; `residual` adds the convolution's input to its output, as
    in SMT (arXiv 2307.08579).
    """

    def __init__(self, dim: int, hidden_dim: int, relu: bool = False, residual: bool = False):
        super().__init__(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.relu, self.residual = relu, residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = F.relu(x, inplace=True) if self.relu else x
        y = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x + y if self.residual else y))
