"""Kernels that only move values: CARAFE upsampling, masked convolution, point-wise spatial attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Content-aware upsampling (CARAFE, arXiv:1905.02188, eq. 2).

    Each output pixel is a weighted sum over the kernel_size × kernel_size neighbourhood of its source pixel.

    Args:
        features: (B, C, H, W). masks: (B, group_size·kernel_size², H·scale, W·scale), one kernel per output pixel and
            group of channels.

    Returns:
        (B, C, H·scale, W·scale).
    """
    batch, channels, height, width = features.shape
    margin = (kernel_size - 1) // 2
    padded = F.pad(features, (margin,) * 4).unflatten(1, (group_size, -1))
    kernels = masks.view(batch, group_size, kernel_size, kernel_size, height, scale_factor, width, scale_factor)
    output = 0
    for row in range(kernel_size):
        for column in range(kernel_size):
            shifted = padded[..., row : row + height, column : column + width]  # (B, G, C/G, H, W)
            output = output + shifted[..., None, :, None] * kernels[:, :, None, row, column]
    return output.reshape(batch, channels, height * scale_factor, width * scale_factor)


def masked_columns(
    features: Tensor, rows: Tensor, columns: Tensor, kernel: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Patches (C·kh·kw, n) of features (1, C, H, W) for the n output pixels (rows, columns) of a convolution of stride 1."""
    padded = F.pad(features[0], (padding[1], padding[1], padding[0], padding[0]))
    patch_rows = rows + torch.arange(kernel[0], device=rows.device)[:, None, None]  # (kh, 1, n)
    patch_columns = columns + torch.arange(kernel[1], device=rows.device)[:, None]  # (kw, n)
    return padded[:, patch_rows, patch_columns].flatten(0, 2)


def psa_mask(x: Tensor, distribute: bool, mask_size: tuple[int, int]) -> Tensor:
    """Position-centred attention maps to full maps (PSANet, ECCV 2018, section 3.2).

    Args:
        x: (B, h_mask·w_mask, H, W): what each pixel says about the pixels around it.
        distribute: the second axis of the result is the speaking pixel (else the pixel spoken about: collect).

    Returns:
        (B, H·W, H, W), zero for pixels out of reach.
    """
    batch, _, height, width = x.shape
    channel, reachable = _psa_channels(height, width, mask_size, x.device)
    full = x.flatten(2).gather(1, channel.expand(batch, -1, -1)) * reachable  # (B, spoken about, speaking)
    return (full.transpose(1, 2) if distribute else full).reshape(batch, height * width, height, width)


def _psa_channels(height: int, width: int, mask_size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each (pixel spoken about, speaking pixel): the channel that holds it, and whether there is one."""
    pixel = torch.arange(height * width, device=device)
    row = (pixel // width)[:, None] - pixel // width + (mask_size[0] - 1) // 2
    column = (pixel % width)[:, None] - pixel % width + (mask_size[1] - 1) // 2
    reachable = (row >= 0) & (row < mask_size[0]) & (column >= 0) & (column < mask_size[1])
    return torch.where(reachable, row * mask_size[1] + column, 0), reachable
