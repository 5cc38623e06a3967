"""iFormer: a four-stage pyramid whose blocks mix some channels by convolution and max-pooling, the others by attention.

Paper: "Inception Transformer" (arXiv 2205.12956). The share of attention grows with depth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import check_heads
from mmvit.layers.conv import ConvNorm
from mmvit.layers.drop import drop_rates
from mmvit.layers.init import init_linear_and_conv
from mmvit.layers.mlp import FeedForward
from mmvit.layers.position import resize_grid
from mmvit.layers.resize import resize
from mmvit.layers.scale import LayerScale
from mmvit.layers.transformer import PreNormBlock
from mmvit.registry import MODELS

from .base import freeze
from .staged import StagedBackbone

EPS = 1e-6


class HighMixer(nn.Module):
    """High frequencies: one half of the channels is convolved, the other max-pooled. (N, C, h, w) -> (N, 2C, h, w)."""

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        self.conv1 = nn.Conv2d(half, dim, 1, bias=False)
        self.proj1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.proj2 = nn.Conv2d(half, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        convolved, pooled = x.chunk(2, 1)
        convolved = self.proj1(self.conv1(convolved))
        pooled = self.proj2(F.max_pool2d(pooled, 3, 1, 1))
        return F.gelu(torch.cat([convolved, pooled], 1))


class LowMixer(nn.Module):
    """Low frequencies: attention of all pixels, of averages of 2x2 where `pooled`. (N, C, h, w) -> (N, C, h, w).

    There is no projection behind the attention. Averages at odd edges are over the pixels that exist.
    """

    def __init__(self, dim: int, num_heads: int, pooled: bool):
        super().__init__()
        self.num_heads, self.pooled = num_heads, pooled
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) if self.pooled else x
        batch, dim, height, width = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(batch, height * width, 3, self.num_heads, -1)
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # (N, heads, h*w, C / heads)
        out = out.transpose(2, 3).reshape(batch, dim, height, width)
        return resize(out, size, "nearest")


class InceptionMixer(nn.Module):
    """Mixes the first channels by `HighMixer`, the last by `LowMixer`, and fuses both. (N, h, w, C) -> (N, h, w, C).

    Args:
        dim: channels C.
        num_heads: attention heads that C has room for; divides `dim`.
        attention_heads: those that there are; the other channels go to the high-frequency paths.
        pooled: attention is among averages of 2x2 pixels.
    """

    def __init__(self, dim: int, num_heads: int, attention_heads: int, pooled: bool):
        super().__init__()
        check_heads(dim, num_heads)
        low = dim // num_heads * attention_heads
        self.split = dim - low, low
        fused = 2 * (dim - low) + low
        self.high_mixer = HighMixer(dim - low)
        self.low_mixer = LowMixer(low, attention_heads, pooled)
        self.conv_fuse = nn.Conv2d(fused, fused, 3, padding=1, groups=fused, bias=False)
        self.proj = nn.Conv2d(fused, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = x.permute(0, 3, 1, 2).split(self.split, 1)
        z = torch.cat([self.high_mixer(high), self.low_mixer(low)], 1)
        return self.proj(z + self.conv_fuse(z)).permute(0, 2, 3, 1)


@MODELS.register_module()
class IFormer(StagedBackbone):
    """iFormer. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3), without norms; sides round up.

    Learnt position embeddings follow each patch embedding; they are resized bilinearly to maps of other sides than their own.
    The published network takes square images of 16 k pixels only, on which this one is the same.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims, num_heads: channels of the stages, and how many attention heads these have room for.
        attention_heads: for each stage, the attention heads of its blocks.
        image_size: side of the images whose maps the position embeddings have the size of.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have the classifiers' rates.
        frozen_stages: -1 trains all, 0 freezes the stem (first patch embedding and positions), k also the first k stages.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "iformer"
    arxiv = "2205.12956"
    _small = dict(
        dims=(96, 192, 320, 384),
        num_heads=(3, 6, 10, 12),
        attention_heads=((1,) * 3, (3,) * 3, (7,) * 4 + (9,) * 5, (11,) * 3),
    )
    _base = dict(
        dims=(96, 192, 384, 512),
        num_heads=(3, 6, 12, 16),
        attention_heads=((1,) * 4, (3,) * 6, (8,) * 7 + (10,) * 7, (15,) * 6),
    )
    _large = dict(
        dims=(96, 192, 448, 640),
        num_heads=(3, 6, 14, 20),
        attention_heads=((1,) * 4, (3,) * 6, (10,) * 9 + (12,) * 9, (19,) * 8),
    )
    variants = {
        "small": dict(**_small, drop_path_rate=0.2),
        "base": dict(**_base, drop_path_rate=0.4),
        "large": dict(**_large, drop_path_rate=0.5),
        "small_384": dict(**_small, drop_path_rate=0.3, image_size=384),
        "base_384": dict(**_base, drop_path_rate=0.5, image_size=384),
        "large_384": dict(**_large, drop_path_rate=0.6, image_size=384),
        "debug": dict(
            dims=(8, 12, 16, 24),
            num_heads=(2, 3, 4, 6),
            attention_heads=((1,), (1, 1), (2, 3), (5,)),
            image_size=64,
            drop_path_rate=0.1,
        ),
    }

    def __init__(
        self,
        arch: str = "small",
        *,
        dims: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        attention_heads: Sequence[Sequence[int]] | None = None,
        image_size: int | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, num_heads=num_heads, attention_heads=attention_heads, image_size=image_size)
        s = {"image_size": 224, **self.settings(arch, {**given, "drop_path_rate": drop_path_rate})}
        dims, heads = s["dims"], s["attention_heads"]
        self._set_depths([len(blocks) for blocks in heads])
        stem = nn.Sequential(
            ConvNorm(3, dims[0] // 2, 3, 2, act="gelu", bias=True), ConvNorm(dims[0] // 2, dims[0], 3, 2, bias=True)
        )
        halvings = (ConvNorm(before, dim, 3, 2, bias=True) for before, dim in zip(dims[:-1], dims[1:]))
        self.patch_embed = nn.ModuleList([stem, *halvings])
        sides = [-(-s["image_size"] // stride) for stride in self.strides]
        self.pos_embed = nn.ParameterList(torch.zeros(1, side, side, dim) for side, dim in zip(sides, dims))
        rates = drop_rates(s["drop_path_rate"], self.depths)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                self._block(stage, dims[stage], s["num_heads"][stage], count, rate)
                for count, rate in zip(heads[stage], rates[stage], strict=True)
            )
            for stage in range(4)
        )
        self.apply(init_linear_and_conv)
        for position in self.pos_embed:
            nn.init.trunc_normal_(position, std=0.02)
        self._set_features(dims, self.strides)
        if frozen_stages >= 0:
            count = max(1, frozen_stages)
            freeze(*self.patch_embed[:count], *self.blocks[:frozen_stages])
            for position in self.pos_embed[:count]:
                position.requires_grad_(False)

    @staticmethod
    def _block(stage: int, dim: int, num_heads: int, attention_heads: int, rate: float) -> PreNormBlock:
        return PreNormBlock(
            nn.LayerNorm(dim, eps=EPS),
            InceptionMixer(dim, num_heads, attention_heads, pooled=stage < 2),
            nn.LayerNorm(dim, eps=EPS),
            FeedForward(dim, 4 * dim),
            rate,
            *((LayerScale(dim), LayerScale(dim)) if stage > 1 else ()),
        )

    def enter(self, stage: int, x: Tensor) -> Tensor:
        x = self.patch_embed[stage](x).permute(0, 2, 3, 1)
        return x + resize_grid(self.pos_embed[stage], *x.shape[1:3])

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        return self.blocks[stage]

    def leave(self, stage: int, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    def output(self, stage: int, x: Tensor) -> Tensor:
        return x

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block; a patch embedding and its positions go with the block after them."""
        kind, stage, *rest = name.split(".")
        if kind == "blocks":
            return self.block_depth(int(stage), int(rest[0]))
        return self.block_depth(int(stage)) if stage != "0" else 0

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("pos_embed.") or name.endswith(".gamma")}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Position embeddings of images of another size are resized bilinearly."""
        if name.startswith("pos_embed.") and value.shape[-1] == own.shape[-1]:
            return resize_grid(value, *own.shape[1:3])
        return value

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours; what only a classifier has goes."""
        return {_rename(key): value for key, value in state_dict.items() if not key.startswith(("norm.", "head."))}


def _rename(key: str) -> str:
    parts = {"proj": "conv", "norm": "norm"}
    key = re.sub(r"^patch_embed\.(proj|norm)(\d)\.", lambda m: f"patch_embed.0.{int(m[2]) - 1}.{parts[m[1]]}.", key)
    key = re.sub(r"^patch_embed(\d)\.(proj|norm)\.", lambda m: f"patch_embed.{int(m[1]) - 1}.{parts[m[2]]}.", key)
    key = re.sub(r"^(blocks|pos_embed)(\d)", lambda m: f"{m[1]}.{int(m[2]) - 1}", key)
    return re.sub(r"\.layer_scale_(\d)$", r".scale\1.gamma", key)
