"""Position encodings."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_position_2d(height: int, width: int, dim: int, temperature: float = 10000.0, *, device=None, dtype=None) -> Tensor:
    """RT-DETR's fixed position embedding, (1, height*width, dim), as its checkpoints expect it.

    Token t holds [sin(a w), cos(a w), sin(b w), cos(b w)] with a = t // height, b = t % height and frequencies
    w_k = temperature^(-k / (dim/4)). The grid is transposed against the row-major order of the features (and scrambled
    on maps that are not square): a quirk of the published networks, kept so that their weights give their results.
    """
    token = torch.arange(height * width, device=device)
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    a = (token // height).to(torch.float64)[:, None] * omega
    b = (token % height).to(torch.float64)[:, None] * omega
    return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], dim=1)[None].to(dtype or torch.get_default_dtype())
