"""Pyramids of stages: the forward pass, the layer depths and the norms of outputs that most families share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from .base import Backbone


class StagedBackbone(Backbone):
    """A row of stages, each of which enters its resolution and then runs blocks.

    A subclass defines `enter` and `stage_blocks`, overrides `leave` and `output` where a stage ends otherwise, and its
    constructor calls `_set_depths`, and `_add_norms` unless `output` is overridden.
    """

    #: How many blocks of stage 2 make one step of `layer_depth`, where each other stage is one step; None: each block is one.
    blocks_per_step: ClassVar[int | None] = None
    #: Blocks of the stages.
    depths: tuple[int, ...]

    def _set_depths(self, depths: Sequence[int]) -> None:
        self.depths = tuple(depths)
        step = self.blocks_per_step
        self.num_layers = 3 + -(-self.depths[2] // step) if step else sum(self.depths)

    def _add_norms(self, dims: Sequence[int], make_norm: Callable[[int], nn.Module]) -> None:
        """A norm, made from its number of channels, for each output."""
        for i in self.out_indices:
            self.add_module(f"norm{i}", make_norm(dims[i]))

    def enter(self, stage: int, x: Tensor) -> Tensor:
        """The input of a stage's blocks, from the image (stage 0: the stem) or the map of the stage before."""
        raise NotImplementedError

    def stage_blocks(self, stage: int) -> Iterable[nn.Module]:
        """The blocks of a stage."""
        raise NotImplementedError

    def leave(self, stage: int, x: Tensor) -> Tensor:
        """What the last block of a stage gives -> the stage's map, from which the next stage and the output are made."""
        return x

    def output(self, stage: int, x: Tensor) -> Tensor:
        """The map of a chosen stage -> the output (N, C, h, w)."""
        return self.get_submodule(f"norm{stage}")(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.run_from(self.enter(0, x))

    def run_from(self, x: Tensor) -> tuple[Tensor, ...]:
        """The map behind the stem -> the outputs."""
        outputs = []
        for stage in range(max(self.out_indices) + 1):
            if stage:
                x = self.enter(stage, x)
            for block in self.stage_blocks(stage):
                x = self.run_stage(block, x)
            x = self.leave(stage, x)
            if stage in self.out_indices:
                outputs.append(self.output(stage, x))
        return tuple(outputs)

    def block_depth(self, stage: int, block: int = 0) -> int:
        """The layer depth of a block, by `blocks_per_step`. What leads into a stage goes with its first block."""
        if self.blocks_per_step is None:
            return 1 + sum(self.depths[:stage]) + block
        return (1, 2, 3 + block // self.blocks_per_step, self.num_layers)[stage]

    def dense_only(self) -> set[str]:
        """The norms of the outputs."""
        return {name for name in self.state_dict() if re.match(r"norm\d", name)}
