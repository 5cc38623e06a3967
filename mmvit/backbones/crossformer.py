"""CrossFormer and CrossFormer++: four-stage pyramids of attention among near tokens and among far ones, in turn.

Papers: "CrossFormer: A Versatile Vision Transformer Based on Cross-scale Attention" (arXiv 2108.00154) and
"CrossFormer++: A Versatile Vision Transformer Hinging on Cross-scale Attention" (arXiv 2303.06908).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import check_heads
from mmvit.layers.drop import drop_rates
from mmvit.layers.mlp import FeedForward
from mmvit.layers.transformer import PreNormBlock
from mmvit.layers.window import Size, pad_to_multiple, relative_position_bias, tensor_cache
from mmvit.registry import MODELS

from .base import renamed
from .swin import LevelPyramid, Stage

PATCHES = (4, 8, 16, 32)
MASKED = -3e4  # on the logits of padded keys: as good as -infinity, and within half precision


class CrossScaleEmbedding(nn.Module):
    """Patches of four sizes around each position, half of the channels from the smallest. (N, 3, H, W) -> (N, h, w, C)."""

    def __init__(self, dim: int):
        super().__init__()
        dims = (dim // 2, dim // 4, dim // 8, dim // 8)
        self.projs = nn.ModuleList(nn.Conv2d(3, d, size, 4, (size - 4) // 2) for d, size in zip(dims, PATCHES, strict=True))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([proj(x) for proj in self.projs], 1).permute(0, 2, 3, 1))


class CrossScaleMerging(nn.Module):
    """A norm, then patches of two sizes around every second position. (N, h, w, C) -> (N, h // 2, w // 2, 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reductions = nn.ModuleList(nn.Conv2d(dim, dim, size, 2, (size - 2) // 2) for size in (2, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)
        return torch.cat([reduction(x) for reduction in self.reductions], 1).permute(0, 2, 3, 1)


@tensor_cache(maxsize=32)
def offsets(size: Size, device: torch.device) -> Tensor:
    """All differences of two positions in a group, row by row: ((2h-1) * (2w-1), 2)."""
    rows, columns = (torch.arange(1 - side, side, device=device) for side in size)
    return torch.cartesian_prod(rows, columns).float()


class DynamicPositionBias(nn.Module):
    """An MLP with `dim` hidden channels from the offset of two tokens of a group of `size` to biases: (heads, h*w, h*w)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.pos_proj = nn.Linear(2, dim)
        widths = (dim, dim, num_heads)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, width)) for width in widths
        )

    def forward(self, size: Size) -> Tensor:
        weight = self.pos_proj.weight
        table = self.pos3(self.pos2(self.pos1(self.pos_proj(offsets(size, weight.device).to(weight.dtype)))))
        return relative_position_bias(table, size)


def group(x: Tensor, size: Size, interval: int) -> Tensor:
    """(N, H, W, ...) -> (N, groups, h*w, ...): each group has h x w tokens at distances of `interval`.

    Token (a, b) of group (R, S, p, q) is pixel ((R*h + a) * interval + p, (S*w + b) * interval + q). H and W are multiples of
    h * interval and w * interval.
    """
    (h, w), (batch, height, width, *rest) = size, x.shape
    x = x.view(batch, height // (h * interval), h, interval, width // (w * interval), w, interval, *rest)
    x = x.permute(0, 1, 4, 3, 6, 2, 5, *range(7, x.dim()))
    return x.reshape(batch, -1, h * w, *rest)


def ungroup(x: Tensor, size: Size, interval: int, height: int, width: int) -> Tensor:
    """The inverse of `group`: (N, groups, h*w, C) -> (N, height, width, C)."""
    h, w = size
    x = x.view(len(x), height // (h * interval), width // (w * interval), interval, interval, h, w, x.shape[-1])
    return x.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(len(x), height, width, x.shape[-1])


@tensor_cache(maxsize=16)
def padding_mask(height: int, width: int, size: Size, interval: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """What to add to the logits of keys, (groups, 1, 1, tokens): `MASKED` for those that pad the map to whole groups."""
    steps = size[0] * interval, size[1] * interval
    if height % steps[0] == 0 and width % steps[1] == 0:
        return None
    bottom, right = -height % steps[0], -width % steps[1]
    mask = F.pad(torch.zeros(1, height, width, device=device, dtype=dtype), (0, right, 0, bottom), value=MASKED)
    return group(mask, size, interval)[0, :, None, None]


class GroupAttention(nn.Module):
    """Attention inside groups of G x G tokens (the papers' SDA and LDA), biased by relative positions. (N, h, w, C) -> same.

    A map with a side of at most G is one group. Otherwise it is padded to whole groups, and padded keys are masked.

    Args:
        dim, num_heads: channels C and attention heads.
        group_size: side G of the groups.
        interval: distance of a group's tokens: 1 for short-distance attention, more for long-distance attention.
    """

    def __init__(self, dim: int, num_heads: int, group_size: int, interval: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.group_size, self.interval = num_heads, group_size, interval
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.pos = DynamicPositionBias(max(dim // 16, 4), num_heads)  # norms over fewer channels would lose the offsets

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        size, interval = (self.group_size, self.group_size), self.interval
        if min(height, width) <= self.group_size:
            size, interval = (height, width), 1
        qkv = pad_to_multiple(self.qkv(x), (size[0] * interval, size[1] * interval))
        mask = padding_mask(height, width, size, interval, x.device, qkv.dtype)
        bias = self.pos(size).to(qkv.dtype)
        groups = ungroup(self.attend(group(qkv, size, interval), bias, mask), size, interval, *qkv.shape[1:3])
        return self.proj(groups[:, :height, :width])

    def attend(self, qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """(N, groups, T, 3C), bias (heads, T, T) and mask (groups, 1, 1, T) of the logits -> (N, groups, T, C)."""
        batch, groups, tokens, _ = qkv.shape
        qkv = qkv.view(batch, groups, tokens, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        # (N * groups, heads, T, d) where all groups have the same logits' bias, else (N, groups * heads, T, d)
        same, bias = (1, bias) if mask is None else (2, (bias + mask).flatten(0, 1))
        query, key, value = qkv.flatten(same, same + 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return out.view(batch, groups, self.num_heads, tokens, -1).transpose(2, 3).flatten(3)


class AmplitudeCooling(nn.Module):
    """CrossFormer++'s amplitude cooling layer: a depthwise 3x3 convolution and a norm, no residual. (N, h, w, C) -> same."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class CooledBlock(PreNormBlock):
    """A block of attention and MLP, with an `AmplitudeCooling` behind it. (N, h, w, C) -> (N, h, w, C)."""

    def __init__(self, dim: int, *parts):
        super().__init__(*parts)
        self.acl = AmplitudeCooling(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.acl(super().forward(x))


@MODELS.register_module()
class CrossFormer(LevelPyramid):
    """CrossFormer. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 without norms; sides are floored at every halving.

    The first, third, ... block of a stage attends at short distance, the others at long distance. Inside, maps are
    (N, h, w, C).

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim: channels of the first stage; each stage has twice those of the one before.
        depths, num_heads: blocks and attention heads of the stages.
        group_sizes: side of the groups of each stage.
        intervals: distance of a group's tokens in long-distance attention, for each stage. The defaults of both are those of
            the papers' dense networks; CrossFormer++ classifies with groups of 4, 4, 14, 7 and intervals 4, 2, 1, 1.
        mlp_ratio: hidden channels of the MLPs over the stage's channels.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        frozen_stages: -1 trains all, 0 freezes the embedding, k also the first k stages with the merging after them.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "crossformer"
    arxiv = "2108.00154"
    rounds_down = True
    #: Whether amplitude cooling layers follow the third, sixth, ... block of a stage, but never its last.
    cooling: ClassVar[bool] = False
    aliases = dict(tiny="t", small="s", base="b", large="l")
    variants = {
        "t": dict(dim=64, depths=(1, 1, 8, 6), num_heads=(2, 4, 8, 16), drop_path_rate=0.1),
        "s": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
        "b": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
        "l": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
        "debug": dict(
            dim=8,
            depths=(2, 1, 2, 1),
            num_heads=(1, 2, 2, 4),
            group_sizes=(3, 3, 2, 2),
            intervals=(2, 2, 1, 1),
            mlp_ratio=1.0,
            drop_path_rate=0.1,
        ),
    }

    def __init__(
        self,
        arch: str = "s",
        *,
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        group_sizes: Sequence[int] | None = None,
        intervals: Sequence[int] | None = None,
        mlp_ratio: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dim=dim, depths=depths, num_heads=num_heads, group_sizes=group_sizes, intervals=intervals)
        s = dict(group_sizes=(7, 7, 7, 7), intervals=(8, 4, 2, 1), mlp_ratio=4.0)
        s |= self.settings(arch, {**given, "mlp_ratio": mlp_ratio, "drop_path_rate": drop_path_rate})
        dims = [s["dim"] * 2**i for i in range(4)]
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        self.patch_embed = CrossScaleEmbedding(dims[0])
        self.layers = nn.ModuleList()
        for i, width in enumerate(dims):
            blocks = []
            for j, rate in enumerate(rates[i]):
                interval = s["intervals"][i] if j % 2 else 1
                attn = GroupAttention(width, s["num_heads"][i], s["group_sizes"][i], interval)
                mlp = FeedForward(width, int(width * s["mlp_ratio"]))
                parts = nn.LayerNorm(width), attn, nn.LayerNorm(width), mlp, rate
                cooled = self.cooling and (j + 1) % 3 == 0 and j < s["depths"][i] - 1
                blocks.append(CooledBlock(width, *parts) if cooled else PreNormBlock(*parts))
            self.layers.append(Stage(blocks, CrossScaleMerging(width) if i < 3 else None))
        self._complete(dims, frozen_stages, output_norms=False)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the papers' repository -> ours; what only a classifier has goes."""
        return renamed(state_dict, ((r"\.ex_conv\.", ".acl.conv."), (r"\.ex_ln\.", ".acl.norm.")))


@MODELS.register_module()
class CrossFormerPlusPlus(CrossFormer):
    """CrossFormer++: `CrossFormer` with amplitude cooling layers, which keep activations from growing with depth."""

    family = "crossformerpp"
    arxiv = "2303.06908"
    cooling = True
    aliases = dict(small="s", base="b", large="l", huge="h")
    variants = {
        "s": dict(dim=64, depths=(2, 2, 18, 2), num_heads=(2, 4, 8, 16), drop_path_rate=0.2),
        "b": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
        "l": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
        "h": dict(dim=128, depths=(6, 6, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
        "debug": {**CrossFormer.variants["debug"], "depths": (2, 1, 4, 1)},
    }
