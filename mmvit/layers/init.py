"""First values of weights, for `Module.apply`."""

from __future__ import annotations

import math

from torch import nn


def init_linear(module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)) -> None:
    """Weights of linear layers N(0, 0.02) truncated, biases 0; other layers stay as PyTorch makes them."""
    if isinstance(module, kinds):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_linear_and_conv(module: nn.Module) -> None:
    """Weights of linear layers and convolutions N(0, 0.02) truncated, biases 0."""
    init_linear(module, (nn.Linear, nn.Conv2d))


def init_by_fan_out(module: nn.Module) -> None:
    """Weights of linear layers N(0, 0.02) truncated, of convolutions N(0, 2 / fan out), biases 0."""
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
