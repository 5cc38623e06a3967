"""Channel gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: each channel times a gate in (0, 1) made of the means of all channels. (N, C, H, W) -> the same.

    Source: "Squeeze-and-Excitation Networks" (arXiv 1709.01507). The gate is ``sigmoid(fc2(relu(fc1(mean))))``.

    Args:
        dim: channels C.
        hidden_dim: channels between the two 1x1 convolutions.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
