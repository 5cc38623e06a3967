"""ResNet-vd, the RT-DETR backbone: deep stem, average-pooled shortcuts.

Papers: "Bag of Tricks for Image Classification with CNNs" (arXiv 1812.01187), "DETRs Beat YOLOs on Real-time Object
Detection" (arXiv 2304.08069). Input: RGB in [0, 1] without mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.registry import MODELS

from .base import Backbone, freeze


class PooledShortcut(nn.Module):
    """2x2 average pooling (borders divide by the real pixels), then 1x1 convolution + norm: halves the sides, rounding up."""

    def __init__(self, in_channels: int, out_channels: int, frozen_norm: bool):
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, 0, ceil_mode=True)
        self.conv = ConvNorm(in_channels, out_channels, 1, frozen_norm=frozen_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


def _shortcut(in_channels: int, out_channels: int, stride: int, first: bool, frozen_norm: bool) -> nn.Module:
    if not first:
        return nn.Identity()
    if stride == 1:
        return ConvNorm(in_channels, out_channels, 1, frozen_norm=frozen_norm)
    return PooledShortcut(in_channels, out_channels, frozen_norm)


class BasicBlock(nn.Module):
    """3x3 (stride) - 3x3 residual block."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, first: bool, frozen_norm: bool):
        super().__init__()
        self.branch2a = ConvNorm(in_channels, width, 3, stride, act="relu", frozen_norm=frozen_norm)
        self.branch2b = ConvNorm(width, width, 3, frozen_norm=frozen_norm)
        self.short = _shortcut(in_channels, width, stride, first, frozen_norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.branch2b(self.branch2a(x)).add_(self.short(x)))


class Bottleneck(nn.Module):
    """1x1 - 3x3 (stride) - 1x1 (x4) residual block."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, first: bool, frozen_norm: bool):
        super().__init__()
        self.branch2a = ConvNorm(in_channels, width, 1, act="relu", frozen_norm=frozen_norm)
        self.branch2b = ConvNorm(width, width, 3, stride, act="relu", frozen_norm=frozen_norm)
        self.branch2c = ConvNorm(width, width * 4, 1, frozen_norm=frozen_norm)
        self.short = _shortcut(in_channels, width * 4, stride, first, frozen_norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.branch2c(self.branch2b(self.branch2a(x))).add_(self.short(x)))


class Stage(nn.Module):
    """Residual blocks of one resolution; the first one projects and may halve the sides."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], in_channels: int, width: int, depth: int, stride: int, frozen_norm: bool
    ):
        super().__init__()
        out_channels = width * block.expansion
        self.blocks = nn.Sequential(
            *(
                block(in_channels if i == 0 else out_channels, width, stride if i == 0 else 1, i == 0, frozen_norm)
                for i in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@MODELS.register_module()
class PResNet(Backbone):
    """ResNet-vd. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3); sides round up at every halving.

    Args:
        arch: a name of `variants`; the following arguments override it.
        block: ``basic`` or ``bottleneck``.
        depths, widths: blocks and (inner) width of the four stages.
        stem: channels of the three stem convolutions.
        freeze_norm: batch norms use fixed statistics and affines.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages.
        out_indices: stages to return.
        with_cp: recompute stages in the backward pass (less memory).
    """

    family = "presnet"
    arxiv = "1812.01187"
    variants = {
        "18vd": dict(block="basic", depths=(2, 2, 2, 2), freeze_norm=False, frozen_stages=-1),
        "34vd": dict(block="basic", depths=(3, 4, 6, 3), freeze_norm=False, frozen_stages=-1),
        "50vd": dict(block="bottleneck", depths=(3, 4, 6, 3), freeze_norm=True, frozen_stages=0),
        "101vd": dict(block="bottleneck", depths=(3, 4, 23, 3), freeze_norm=True, frozen_stages=0),
        "shapes": dict(
            block="basic", depths=(1, 1, 1, 1), freeze_norm=False, frozen_stages=-1, stem=(16, 16, 24), widths=(24, 48, 96, 128)
        ),
        "debug": dict(
            block="bottleneck", depths=(1, 2, 1, 1), freeze_norm=False, frozen_stages=-1, stem=(4, 4, 8), widths=(4, 6, 8, 8)
        ),
    }

    def __init__(
        self,
        arch: str = "50vd",
        *,
        block: str | None = None,
        depths: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        stem: Sequence[int] | None = None,
        freeze_norm: bool | None = None,
        frozen_stages: int | None = None,
        out_indices: Sequence[int] = (1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(block=block, depths=depths, widths=widths, stem=stem, freeze_norm=freeze_norm, frozen_stages=frozen_stages)
        s = {"widths": (64, 128, 256, 512), "stem": (32, 32, 64), **self.settings(arch, given)}
        kind = {"basic": BasicBlock, "bottleneck": Bottleneck}[s["block"]]
        c1, c2, c3 = s["stem"]
        frozen = s["freeze_norm"]
        self.conv1 = nn.Sequential()
        self.conv1.add_module("conv1_1", ConvNorm(3, c1, 3, 2, act="relu", frozen_norm=frozen))
        self.conv1.add_module("conv1_2", ConvNorm(c1, c2, 3, act="relu", frozen_norm=frozen))
        self.conv1.add_module("conv1_3", ConvNorm(c2, c3, 3, act="relu", frozen_norm=frozen))
        channels = [width * kind.expansion for width in s["widths"]]
        self.res_layers = nn.ModuleList(
            Stage(kind, c3 if i == 0 else channels[i - 1], s["widths"][i], s["depths"][i], 1 if i == 0 else 2, frozen)
            for i in range(4)
        )
        self._set_features(channels, self.strides)
        self.num_layers = sum(s["depths"])
        if s["frozen_stages"] >= 0:
            freeze(self.conv1, *self.res_layers[: s["frozen_stages"]])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.run_stages(F.max_pool2d(self.conv1(x), 3, 2, 1), self.res_layers))

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per residual block."""
        if not name.startswith("res_layers."):
            return 0
        _, stage, _, block, *_ = name.split(".")
        return 1 + sum(len(s.blocks) for s in self.res_layers[: int(stage)]) + int(block)
