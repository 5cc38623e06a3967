"""Swin Transformer: a four-stage pyramid of attention inside shifted windows.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import check_heads
from mmvit.layers.drop import drop_rates
from mmvit.layers.init import init_linear
from mmvit.layers.mlp import FeedForward
from mmvit.layers.transformer import PatchEmbed, PreNormBlock
from mmvit.layers.window import (
    pad_to_multiple,
    relative_position_bias,
    resize_bias_table,
    shift_mask,
    window_partition,
    window_reverse,
)
from mmvit.registry import MODELS

from .base import freeze
from .staged import StagedBackbone


class WindowAttention(nn.Module):
    """Attention inside the windows of a map, which may be rolled by half a window. (B, H, W, C) -> (B, H, W, C).

    The map is padded with zeros to whole windows; padded tokens take part as keys. A subclass computes `attend`.

    Args:
        dim, num_heads: channels and attention heads.
        window: side of the windows.
        shifted: roll the map by half a window.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.window = num_heads, (window, window)
        self.shift = window // 2 if shifted else 0
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # queries, keys and values of padded tokens, where `qkv` maps zero to something else (a norm was folded into it)
        self.register_buffer("padding", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        grid = height + -height % self.window[0], width + -width % self.window[1]
        qkv = self.qkv(self.cut(x)) if self.padding is None else self.cut(self.qkv(x))
        x = window_reverse(self.proj(self.attend(qkv, grid)), self.window, *grid)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def cut(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B * windows, tokens, D), padded and rolled."""
        x = pad_to_multiple(x, self.window, self.padding)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        return window_partition(x, self.window)

    def attend(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B * windows, tokens, 3C) of a padded map of sides `grid` -> (B * windows, tokens, C)."""
        raise NotImplementedError


class BiasedWindowAttention(WindowAttention):
    """Softmax attention with a learnt bias for each relative position; tokens that only rolling brought together are masked."""

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool):
        super().__init__(dim, num_heads, window, shifted)
        self.relative_position_bias_table = nn.Parameter(self.qkv.weight.new_empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def attend(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, tokens, _ = qkv.shape
        query, key, value = qkv.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B * windows, heads, N, d)
        bias = relative_position_bias(self.relative_position_bias_table, self.window).to(qkv.dtype)[None]
        if self.shift:
            mask = shift_mask(*grid, self.window, (self.shift, self.shift), qkv.device, qkv.dtype)
            bias = bias + mask[:, None]  # (windows, heads, N, N)
            bias = bias.expand(batch // len(mask), -1, -1, -1, -1).flatten(0, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return out.transpose(1, 2).reshape(batch, tokens, -1)


class PatchMerging(nn.Module):
    """Concatenates 2x2 neighbours, norm, linear layer. (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C)."""

    def __init__(self, dim: int, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, (2, 2))
        batch, height, width, dim = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)  # neighbours column by column
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * dim)))


class Stage(nn.Module):
    """The blocks of one resolution, and what halves the map after them."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample


class LevelPyramid(StagedBackbone):
    """Four of `Stage` behind a patch embedding, with maps (N, h, w, C) inside. (N, 3, H, W) -> maps of stride 4, 8, 16, 32.

    A subclass's constructor makes `patch_embed` and the levels, and then calls `_complete`.
    """

    def _complete(self, dims: Sequence[int], frozen_stages: int, output_norms: bool = True) -> None:
        self._set_features(dims, self.strides)
        self._add_norms(dims, nn.LayerNorm if output_norms else nn.Identity)
        self._set_depths([len(self.level(i).blocks) for i in range(4)])
        self.apply(init_linear)
        if frozen_stages >= 0:
            freeze(self.patch_embed, *map(self.level, range(frozen_stages)))

    def level(self, stage: int) -> Stage:
        """The blocks of a stage and what halves their map."""
        return self.layers[stage]

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self.level(stage - 1).downsample(x) if stage else self.patch_embed(x)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        return self.level(stage).blocks

    def output(self, stage: int, x: Tensor) -> Tensor:
        return super().output(stage, x).permute(0, 3, 1, 2)

    def layer_depth(self, name: str) -> int:
        """Patch embedding 0, then as `block_depth` says; what halves the map goes with the block after it."""
        if name.startswith("patch_embed."):
            return 0
        if name.startswith("norm"):
            return self.num_layers + 1
        _, stage, part, block, *_ = name.split(".")
        return self.block_depth(int(stage) + 1) if part == "downsample" else self.block_depth(int(stage), int(block))


@MODELS.register_module()
class Swin(LevelPyramid):
    """Swin Transformer (v1). (N, 3, H, W) -> maps of stride 4, 8, 16, 32; sides are padded and rounded up at every halving.

    A subclass exchanges parts by overriding `make_norm`, `make_attention` or `make_block_attention`. Every second block is
    shifted, also where one window covers the map, as in the papers' dense networks (their classifier does not shift there).
    Inside, maps are (N, h, w, C).

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim: channels of the first stage; each stage has twice those of the one before.
        depths, num_heads: blocks and attention heads of the stages.
        window: side of the windows, for all stages or for each.
        mlp_ratio: hidden channels of the MLPs over the stage's channels.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        frozen_stages: -1 trains all, 0 freezes the patch embedding, k also the first k stages with the patch merging after
            them (the papers' code counts one more: there 1 is our 0, and 2 our 1). The norms of the outputs stay trainable.
        out_indices: stages to return, each through its own norm.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "swin"
    arxiv = "2103.14030"
    blocks_per_step = 2
    variants = {
        "tiny": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        "small": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        "base": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        "base_window12": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=12),
        "large": dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
        "large_window12": dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12),
        "debug": dict(dim=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), window=4, mlp_ratio=2.0, drop_path_rate=0.0),
    }

    def __init__(
        self,
        arch: str = "tiny",
        *,
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        window: int | Sequence[int] | None = None,
        mlp_ratio: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dim=dim, depths=depths, num_heads=num_heads, window=window, mlp_ratio=mlp_ratio)
        s = dict(window=7, mlp_ratio=4.0, drop_path_rate=0.2)
        s |= self.settings(arch, {**given, "drop_path_rate": drop_path_rate})
        dims = [s["dim"] * 2**i for i in range(4)]
        windows = (s["window"],) * 4 if isinstance(s["window"], int) else s["window"]
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        self.patch_embed = PatchEmbed(3, dims[0], 4, 4, 0, self.make_norm(dims[0]))
        self.layers = nn.ModuleList()
        for i, (width, heads, side) in enumerate(zip(dims, s["num_heads"], windows, strict=True)):
            blocks = [
                PreNormBlock(
                    self.make_norm(width),
                    self.make_block_attention(i, j, width, heads, side),
                    self.make_norm(width),
                    FeedForward(width, int(width * s["mlp_ratio"])),
                    rate,
                )
                for j, rate in enumerate(rates[i])
            ]
            self.layers.append(Stage(blocks, PatchMerging(width, self.make_norm(4 * width)) if i < 3 else None))
        self._complete(dims, frozen_stages)

    def make_norm(self, dim: int) -> nn.Module:
        """A norm inside the network, over the last of (N, ..., dim)."""
        return nn.LayerNorm(dim)

    def make_block_attention(self, stage: int, block: int, dim: int, num_heads: int, window: int) -> nn.Module:
        """`make_attention` for block number `block` of a stage: every second one is shifted."""
        return self.make_attention(stage, dim, num_heads, window, block % 2 == 1)

    def make_attention(self, stage: int, dim: int, num_heads: int, window: int, shifted: bool) -> nn.Module:
        """The attention of a block of stage 0 to 3: (N, h, w, dim) -> (N, h, w, dim)."""
        return BiasedWindowAttention(dim, num_heads, window, shifted)

    def enter(self, stage: int, x: Tensor) -> Tensor:
        """Images are filled up to whole patches with zeros."""
        if stage == 0 and any(side % 4 for side in x.shape[2:]):
            x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        return super().enter(stage, x)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".relative_position_bias_table")}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Bias tables of another window size are resized bicubically."""
        if name.endswith(".relative_position_bias_table") and value.shape[1:] == own.shape[1:]:
            return resize_bias_table(value, len(own))
        return value

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the papers' repositories, or OpenMMLab's, -> ours; what only a classifier has, and constants, go."""
        if any(key.startswith("stages.") for key in state_dict):
            state_dict = names_from_openmmlab(state_dict)
        return {
            key: value
            for key, value in state_dict.items()
            if not key.startswith(("norm.", "head.")) and not key.endswith((".attn_mask", ".relative_position_index"))
        }


#: (mmdet's and mmseg's name, ours), in order of application.
_OPENMMLAB = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("stages.", "layers."),
    (".attn.w_msa.", ".attn."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)


def names_from_openmmlab(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries of mmdet's or mmseg's SwinTransformer -> ours."""
    converted = {}
    for key, value in state_dict.items():
        for theirs, ours in _OPENMMLAB:
            key = key.replace(theirs, ours)
        if ".downsample." in key:  # the channels of the neighbours: theirs (C, row, column), ours reversed
            value = value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
        converted[key] = value
    return converted
