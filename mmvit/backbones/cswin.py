"""CSWin Transformer: a four-stage pyramid of attention inside cross-shaped windows.

Paper: "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows" (arXiv 2107.00652).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.attention import check_heads
from mmvit.layers.drop import drop_rates
from mmvit.layers.init import init_linear
from mmvit.layers.mlp import FeedForward
from mmvit.layers.transformer import PatchEmbed, PreNormBlock
from mmvit.layers.window import window_reverse
from mmvit.registry import MODELS

from .base import freeze, renamed
from .staged import StagedBackbone


class LePEAttention(nn.Module):
    """Attention inside windows, plus a depthwise convolution of each window's values ("locally-enhanced positional encoding").

    The map is padded with zeros on all sides to whole windows; padded tokens take part as keys. The convolution sees zeros
    beyond the border of its window. (N, h, w, 3, D) queries, keys and values -> (N, h, w, D).

    Args:
        dim, num_heads: channels D and attention heads.
        height, width: sides of the windows; None is the whole side of the map.
    """

    def __init__(self, dim: int, num_heads: int, height: int | None = None, width: int | None = None):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.window = num_heads, (height, width)
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        height, width = qkv.shape[1:3]
        h, w = self.window[0] or height, self.window[1] or width
        down, right = -height % h, -width % w
        top, left = down // 2, right // 2
        if down or right:
            qkv = F.pad(qkv, (0, 0, 0, 0, left, right - left, top, down - top))
        rows, columns, dim = (height + down) // h, (width + right) // w, qkv.shape[-1]
        windows = qkv.view(-1, rows, h, columns, w, 3, self.num_heads, dim // self.num_heads).permute(5, 0, 1, 3, 6, 2, 4, 7)
        query, key, value = windows.reshape(3, -1, self.num_heads, h * w, windows.shape[-1])  # (N * windows, heads, h*w, d)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        local = self.lepe(value.transpose(2, 3).reshape(-1, dim, h, w)).flatten(2).transpose(1, 2)
        out = window_reverse(out + local, (h, w), height + down, width + right)
        return out[:, top : top + height, left : left + width]


class CrossShapedAttention(nn.Module):
    """Half of the heads attend inside vertical stripes of the map, half inside horizontal ones. (N, h, w, C) -> (N, h, w, C).

    Args:
        dim, num_heads: channels C and attention heads.
        stripe: width of the stripes; None: all heads attend to the whole map.
    """

    def __init__(self, dim: int, num_heads: int, stripe: int | None):
        super().__init__()
        check_heads(dim, num_heads)
        windows = [dict(width=stripe), dict(height=stripe)] if stripe else [{}]
        if num_heads % len(windows):
            raise UserError(f"{num_heads} attention heads cannot share two directions of stripes: give an even number.")
        self.qkv = nn.Linear(dim, 3 * dim)
        self.branches = nn.ModuleList(
            LePEAttention(dim // len(windows), num_heads // len(windows), **window) for window in windows
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, len(self.branches), -1))  # (N, h, w, 3, branches, D)
        return self.proj(torch.cat([branch(qkv[..., i, :]) for i, branch in enumerate(self.branches)], -1))


@MODELS.register_module()
class CSWin(StagedBackbone):
    """CSWin Transformer. (N, 3, H, W) -> maps of stride 4, 8, 16, 32, each with its own norm.

    Sides of the first map are floor((H + 1) / 4), as the paper's stem makes them, and halve rounding up. Inside, maps are
    (N, h, w, C). The last stage attends to the whole map.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim: channels of the first stage; each stage has twice those of the one before.
        depths, num_heads: blocks and attention heads of the stages.
        stripes: width of the stripes in the first three stages.
        mlp_ratio: hidden channels of the MLPs over the stage's channels.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have UPerNet's rates.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages. The norms of the outputs stay trainable.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "cswin"
    arxiv = "2107.00652"
    variants = {
        "tiny": dict(dim=64, depths=(1, 2, 21, 1), num_heads=(2, 4, 8, 16), drop_path_rate=0.3),
        "small": dict(dim=64, depths=(2, 4, 32, 2), num_heads=(2, 4, 8, 16), drop_path_rate=0.4),
        "base": dict(dim=96, depths=(2, 4, 32, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.6),
        "base_384": dict(dim=96, depths=(2, 4, 32, 2), num_heads=(4, 8, 16, 32), stripes=(1, 2, 12), drop_path_rate=0.6),
        "large": dict(dim=144, depths=(2, 4, 32, 2), num_heads=(6, 12, 24, 24), drop_path_rate=0.2),
        "large_384": dict(dim=144, depths=(2, 4, 32, 2), num_heads=(6, 12, 24, 24), stripes=(1, 2, 12), drop_path_rate=0.2),
        "debug": dict(dim=8, depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 4), stripes=(1, 2, 3), mlp_ratio=2.0, drop_path_rate=0.1),
    }

    def __init__(
        self,
        arch: str = "tiny",
        *,
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        stripes: Sequence[int] | None = None,
        mlp_ratio: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dim=dim, depths=depths, num_heads=num_heads, stripes=stripes, mlp_ratio=mlp_ratio)
        s = dict(stripes=(1, 2, 7), mlp_ratio=4.0)
        s |= self.settings(arch, {**given, "drop_path_rate": drop_path_rate})
        self._set_depths(s["depths"])
        dims = [s["dim"] * 2**i for i in range(4)]
        rates = drop_rates(s["drop_path_rate"], self.depths)
        self.patch_embed = PatchEmbed(3, dims[0], 7, 4, 2, nn.LayerNorm(dims[0]))
        for i, (width, heads, stripe) in enumerate(zip(dims, s["num_heads"], (*s["stripes"], None), strict=True)):
            if i:
                self.add_module(f"merge{i}", PatchEmbed(dims[i - 1], width, 3, 2, 1, nn.LayerNorm(width)))
            self.add_module(
                f"stage{i + 1}",
                nn.ModuleList(
                    PreNormBlock(
                        nn.LayerNorm(width),
                        CrossShapedAttention(width, heads, stripe),
                        nn.LayerNorm(width),
                        FeedForward(width, int(width * s["mlp_ratio"])),
                        rate,
                    )
                    for rate in rates[i]
                ),
            )
            if i in self.out_indices:
                self.add_module(f"norm{i + 1}", nn.LayerNorm(width))
        self.apply(init_linear)
        self._set_features(dims, self.strides)
        if frozen_stages >= 0:
            frozen = [f"stage{i + 1}" for i in range(frozen_stages)] + [f"merge{i}" for i in range(1, frozen_stages)]
            freeze(self.patch_embed, *map(self.get_submodule, frozen))

    @classmethod
    def map_side(cls, side: int, stride: int) -> int:
        return -(-((side + 1) // 4) // (stride // 4))

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"merge{stage}")(x.permute(0, 3, 1, 2)) if stage else self.patch_embed(x)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        return self.get_submodule(f"stage{stage + 1}")

    def output(self, stage: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"norm{stage + 1}")(x).permute(0, 3, 1, 2)

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block; what halves the map goes with the block after it."""
        if name.startswith("patch_embed."):
            return 0
        kind, stage, block = re.match(r"(stage|merge|norm)(\d)\.(\w+)", name).groups()
        if kind == "norm":
            return self.num_layers + 1
        return self.block_depth(int(stage)) if kind == "merge" else self.block_depth(int(stage) - 1, int(block))

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours; what only a classifier has goes."""
        return renamed(state_dict, _OFFICIAL)


#: (the paper's repository's name as a regular expression, ours), in order of application.
_OFFICIAL = (
    (r"^stage1_conv_embed\.0\.", "patch_embed.proj."),
    (r"^stage1_conv_embed\.2\.", "patch_embed.norm."),
    (r"^merge(\d)\.conv\.", r"merge\1.proj."),
    (r"^(stage\d\.\d+)\.(qkv|proj)\.", r"\1.attn.\2."),
    (r"^(stage\d\.\d+)\.attns\.(\d)\.get_v\.", r"\1.attn.branches.\2.lepe."),
)
