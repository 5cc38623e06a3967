"""The one mechanism of re-parameterisation: every module that can be merged has a method ``merge()``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def deploy(model: nn.Module) -> nn.Module:
    """Put `model` in evaluation and merge, in place and from the outermost module inwards, all that has a ``merge()``.

    Merged modules compute the same function with fewer operations and can no longer be trained.
    """
    model.eval()
    for module in list(model.modules()):
        if hasattr(module, "merge"):
            module.merge()
    return model.requires_grad_(False)


def batch_norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (C) of the function ``scale * x + shift`` that a batch norm is in evaluation."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


@torch.no_grad()
def fold_before(layer: nn.Linear | nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make `layer` (without groups and padding) apply ``scale * x + shift`` (per input channel) to its input x first."""
    weight = layer.weight
    bias = weight.flatten(2).sum(-1) @ shift if weight.dim() > 2 else weight @ shift
    layer.bias = nn.Parameter(bias if layer.bias is None else layer.bias + bias)
    weight.mul_(scale.view(-1, *(1,) * (weight.dim() - 2)))


@torch.no_grad()
def fold_after(layer: nn.Linear | nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make `layer` apply ``scale * y + shift`` (per output channel) to its output y."""
    layer.weight.mul_(scale.view(-1, *(1,) * (layer.weight.dim() - 1)))
    layer.bias = nn.Parameter(shift if layer.bias is None else scale * layer.bias + shift)
