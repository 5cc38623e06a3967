"""The one mechanism of re-parameterisation: every module that can be merged has a method ``merge()``."""

from __future__ import annotations

import torch
from torch import nn


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
