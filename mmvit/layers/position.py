"""Position encodings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def sine_position_2d(height: int, width: int, dim: int, *, device=None, dtype=None) -> Tensor:
    """DETR's fixed position embedding (arXiv 2005.12872, normalised to 2 pi) of a map, (1, height*width, dim).

    The first half of the channels encodes y, the second x; sines and cosines alternate.
    """
    half = dim // 2
    frequency = 10000.0 ** -(2 * (torch.arange(half, device=device) // 2).double() / half)
    parts = []
    for side in (height, width):
        position = torch.arange(1, side + 1, device=device).double() / (side + 1e-6) * (2 * torch.pi)
        angle = position[:, None] * frequency
        parts.append(torch.where(torch.arange(half, device=device) % 2 == 0, angle.sin(), angle.cos()))
    y, x = parts[0][:, None].expand(-1, width, -1), parts[1][None].expand(height, -1, -1)
    return torch.cat([y, x], -1).flatten(0, 1)[None].to(dtype or torch.get_default_dtype())


def resize_grid(grid: Tensor, height: int, width: int, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """Resize learnt positions, bilinearly or bicubically: (1, h, w, C) -> (1, height, width, C)."""
    if grid.shape[1:3] == (height, width):
        return grid
    maps = grid.permute(0, 3, 1, 2)
    resized = F.interpolate(maps, (height, width), mode=mode, align_corners=False, antialias=antialias)
    return resized.permute(0, 2, 3, 1)
