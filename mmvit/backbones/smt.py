"""SMT: a pyramid whose first stages modulate features with multi-scale convolutions and whose last attend globally.

Paper: "Scale-Aware Modulation Meet Transformer" (arXiv 2307.08579).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.attention import check_heads
from mmvit.layers.conv import ConvNorm
from mmvit.layers.drop import drop_rates
from mmvit.layers.init import init_by_fan_out
from mmvit.layers.mlp import ConvFeedForward
from mmvit.layers.scale import LayerScale
from mmvit.layers.transformer import PatchEmbed, PreNormBlock
from mmvit.registry import MODELS

from .base import renamed
from .pvt import EmbeddingPyramid

#: eps of the norms of blocks and stages.
EPS = 1e-6


class ScaleAwareModulation(nn.Module):
    """A value times a map that mixes depthwise convolutions of several sizes. (N, h, w, C) -> (N, h, w, C).

    Multi-head mixed convolution: each quarter of the channels has a kernel size of its own. Scale-aware aggregation: groups of
    the same channel of all four are widened, normalised and mixed by 1x1 convolutions.
    """

    kernels = (3, 5, 7, 9)

    def __init__(self, dim: int):
        super().__init__()
        heads = len(self.kernels)
        if dim % heads:
            raise UserError(f"{heads} kernel sizes cannot share {dim} channels: give a width that is a multiple of {heads}.")
        width = dim // heads
        self.v = nn.Linear(dim, dim)
        self.s = nn.Linear(dim, dim)
        self.local_convs = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in self.kernels)
        self.proj0 = ConvNorm(dim, 2 * dim, groups=width, act="gelu", bias=True)
        self.proj1 = nn.Conv2d(2 * dim, dim, 1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.s(x).permute(0, 3, 1, 2).chunk(len(self.kernels), 1)
        mixed = torch.stack([conv(head) for conv, head in zip(self.local_convs, heads)], 2).flatten(1, 2)
        modulator = self.proj1(self.proj0(mixed)).permute(0, 2, 3, 1)
        return self.proj(modulator * self.v(x))


class LocallyEnhancedAttention(nn.Module):
    """Global attention, plus a 3x3 depthwise convolution of the values. (N, h, w, C) -> (N, h, w, C)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.dw_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.kv(x).chunk(2, -1)
        out = F.scaled_dot_product_attention(self.split(self.q(x)), self.split(key), self.split(value))
        out = out.transpose(1, 2).reshape(x.shape)
        return self.proj(out + self.dw_conv(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def split(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, heads, h*w, C / heads)."""
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


@MODELS.register_module()
class SMT(EmbeddingPyramid):
    """Scale-Aware Modulation Transformer. (N, 3, H, W) -> maps of stride 4, 8, 16, 32.

    Stages 0 and 1 modulate, stage 2 modulates and attends by turns, stage 3 attends. Each stage ends with a norm, whose result
    is both the output and the input of the next stage. Sides round up at every halving but the second. Inside a stage, maps are
    (N, h, w, C).

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims, depths: channels and blocks of the stages.
        num_heads: attention heads of stages 2 and 3.
        mlp_ratios: hidden channels of the MLPs over `dims`.
        stem_kernel: side of the first convolution.
        layer_scale_init: first value of the factors of the residual branches; None has no such factors.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        frozen_stages: -1 trains all, 0 freezes the stem (first patch embedding), k also the first k stages.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "smt"
    arxiv = "2307.08579"
    variants = {
        "t": dict(dims=(64, 128, 256, 512), depths=(2, 2, 8, 1), drop_path_rate=0.1),
        "s": dict(dims=(64, 128, 256, 512), depths=(3, 4, 18, 2), drop_path_rate=0.2),
        "b": dict(dims=(64, 128, 256, 512), depths=(4, 6, 28, 2), mlp_ratios=(8, 6, 4, 2), stem_kernel=7, drop_path_rate=0.3),
        "l": dict(
            dims=(96, 192, 384, 768),
            depths=(4, 6, 28, 4),
            mlp_ratios=(8, 6, 4, 2),
            stem_kernel=7,
            layer_scale_init=1e-4,
            drop_path_rate=0.1,
        ),
        "debug": dict(dims=(8, 16, 24, 32), depths=(1, 2, 3, 1), num_heads=(2, 4), mlp_ratios=(2, 2, 2, 2), drop_path_rate=0.1),
        "scaled_debug": dict(
            dims=(8, 16, 24, 32),
            depths=(1, 1, 2, 1),
            num_heads=(2, 4),
            mlp_ratios=(2, 2, 2, 2),
            stem_kernel=7,
            layer_scale_init=1e-4,
            drop_path_rate=0.1,
        ),
    }

    def __init__(
        self,
        arch: str = "s",
        *,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] | None = None,
        stem_kernel: int | None = None,
        layer_scale_init: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios, stem_kernel=stem_kernel)
        given.update(layer_scale_init=layer_scale_init, drop_path_rate=drop_path_rate)
        defaults = dict(num_heads=(8, 16), mlp_ratios=(4, 4, 4, 2), stem_kernel=3, layer_scale_init=None)
        s = defaults | self.settings(arch, given)
        self._set_depths(s["depths"])
        dims, scale = s["dims"], s["layer_scale_init"]
        rates = drop_rates(s["drop_path_rate"], self.depths)
        heads = (None, None, *s["num_heads"])
        for i, dim in enumerate(dims):
            if i:
                embed = PatchEmbed(dims[i - 1], dim, 3, 2, 1, nn.LayerNorm(dim))
            else:
                first = ConvNorm(3, dim, s["stem_kernel"], 2, act="relu")
                embed = nn.Sequential(first, PatchEmbed(dim, dim, 2, 2, 0, nn.LayerNorm(dim)))
            blocks = nn.ModuleList()
            for j, rate in enumerate(rates[i]):
                attends = i == 3 or (i == 2 and j % 2 == 1)
                attention = LocallyEnhancedAttention(dim, heads[i]) if attends else ScaleAwareModulation(dim)
                mlp = ConvFeedForward(dim, int(dim * s["mlp_ratios"][i]), residual=True)
                scales = () if scale is None else (LayerScale(dim, scale), LayerScale(dim, scale))
                norm1, norm2 = (nn.LayerNorm(dim, eps=EPS) for _ in range(2))
                blocks.append(PreNormBlock(norm1, attention, norm2, mlp, rate, *scales))
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", blocks)
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=EPS))
        self.apply(init_by_fan_out)
        self._set_features(dims, self.strides)
        if frozen_stages >= 0:
            self._freeze(frozen_stages)

    @classmethod
    def map_side(cls, side: int, stride: int) -> int:
        """Rounded up by the first convolution, down by the second, up by the later ones."""
        return -(-((side + 1) // 4) // (stride // 4))

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".gamma")}

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository (its classifier's or its dense networks') -> ours; the classifier itself goes."""
        return renamed(state_dict, _OFFICIAL, dropped=("head.",))


#: (pattern of official names, ours), in order of application.
_OFFICIAL = (
    (r"^patch_embed1\.norm\.", "patch_embed1.1.norm."),
    (r"^patch_embed1\.conv\.0\.", "patch_embed1.0.conv."),
    (r"^patch_embed1\.conv\.1\.", "patch_embed1.0.norm."),
    (r"^patch_embed1\.conv\.3\.", "patch_embed1.1.proj."),
    (r"\.attn\.proj0\.", ".attn.proj0.conv."),
    (r"\.attn\.bn\.", ".attn.proj0.norm."),
    (r"\.attn\.local_conv\.", ".attn.dw_conv."),  # the classifier's name
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"\.gamma_(\d)$", r".scale\1.gamma"),
    (r"local_conv_(\d)", lambda match: f"local_convs.{int(match[1]) - 1}"),
)
