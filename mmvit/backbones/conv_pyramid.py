"""What ConvNeXt, HorNet and UniRepLKNet share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from mmvit.layers.init import init_linear_and_conv
from mmvit.layers.norm import LayerNorm2d

from .base import freeze
from .staged import StagedBackbone

EPS = 1e-6


def patch_layers(dims: Sequence[int]) -> list[nn.Sequential]:
    """Disjoint patches of 4x4 pixels, then of 2x2: (N, 3, H, W) -> (N, dims[0], H // 4, W // 4), and so on."""
    stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0], eps=EPS))
    halvings = (
        nn.Sequential(LayerNorm2d(before, eps=EPS), nn.Conv2d(before, dim, 2, 2)) for before, dim in zip(dims[:-1], dims[1:])
    )
    return [stem, *halvings]


class ConvPyramid(StagedBackbone):
    """Four stages of convolutional blocks, each behind a layer that reduces the map. (N, 3, H, W) -> maps of stride 4 to 32.

    A subclass's constructor gives the parts to `_assemble`.
    """

    blocks_per_step = 3

    def _assemble(
        self,
        dims: Sequence[int],
        downsample_layers: Sequence[nn.Module],
        stages: Sequence[Sequence[nn.Module]],
        frozen_stages: int,
        output_norms: bool = True,
    ) -> None:
        """Take the parts: the stem and what leads into the later stages, and the blocks of each stage."""
        self.downsample_layers = nn.ModuleList(downsample_layers)
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self._add_norms(dims, partial(LayerNorm2d, eps=EPS) if output_norms else nn.Identity)
        self.apply(init_linear_and_conv)
        self._set_features(dims, self.strides)
        self._set_depths([len(blocks) for blocks in self.stages])
        if frozen_stages >= 0:
            freeze(self.downsample_layers[0], *self.downsample_layers[:frozen_stages], *self.stages[:frozen_stages])

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self.downsample_layers[stage](x)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        return self.stages[stage]

    def layer_depth(self, name: str) -> int:
        """Stem 0; stage 0: 1; stage 1: 2; stage 2: from 3 on one step per `blocks_per_step` blocks; stage 3: `num_layers`.

        A downsampling layer goes with the stage after it.
        """
        kind, *rest = name.split(".")
        if kind == "downsample_layers":
            return self.block_depth(int(rest[0])) if rest[0] != "0" else 0
        if kind == "stages":
            return self.block_depth(int(rest[0]), int(rest[1]))
        return self.num_layers + 1
