"""Next-ViT: a four-stage pyramid of convolution blocks, each stage from the second on ending in a transformer block.

Paper: "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios"
(arXiv 2207.05501). `mmvit.layers.reparam.deploy` merges all batch norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.attention import check_heads
from mmvit.layers.conv import ConvNorm
from mmvit.layers.drop import DropPath, drop_rates
from mmvit.layers.init import init_linear_and_conv
from mmvit.layers.mlp import FeedForward2d
from mmvit.layers.reparam import batch_norm_affine, fold_before
from mmvit.registry import MODELS

from .base import Backbone, freeze


class PatchAdapter(ConvNorm):
    """Halves the map by 2x2 averages if `stride` is 2; 1x1 convolution and norm. (N, I, H, W) -> (N, O, H/stride, W/stride).

    Sides round up: an average at an odd edge is over the pixels that exist.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 1)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pool(x))


def patch_adapter(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A `PatchAdapter` where stride or channels change."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return PatchAdapter(in_channels, out_channels, stride)


class ConvAttention(nn.Module):
    """Multi-head convolutional attention (MHCA): each head mixes its channels in a 3x3 neighbourhood.

    (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        check_heads(dim, dim // head_dim)
        self.conv = ConvNorm(dim, dim, 3, groups=dim // head_dim, act="relu")
        self.projection = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.conv(x))


class EfficientAttention(nn.Module):
    """Multi-head attention whose keys and values come from averaged tokens (E-MHSA). (N, T, C) -> (N, T, C).

    As in the published code, an average is over `reduction`^2 consecutive tokens of the row-major sequence, not over a window
    of the map; tokens that fill no average take no part as keys.

    Args:
        dim: channels C.
        num_heads: attention heads; divides `dim`.
        reduction: square root of the number of tokens in an average; 1 for none, and no norm.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.pooled = num_heads, reduction**2
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim) if reduction > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        source = x
        if self.pooled > 1:
            count = x.shape[1] // self.pooled
            source = x[:, : count * self.pooled].unflatten(1, (count, self.pooled)).mean(2)
            source = self.norm(source.transpose(1, 2)).transpose(1, 2)
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (self.q(x), self.k(source), self.v(source))
        )  # (N, heads, T, C / heads), (N, heads, T / reduction^2, C / heads)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).flatten(2))

    def fold_norms(self, scale: Tensor, shift: Tensor) -> None:
        """Take over ``scale * x + shift`` from a norm before the attention, and merge the own norm."""
        fold_before(self.q, scale, shift)
        if self.pooled > 1:  # averages of an affine function are that function of the averages
            own_scale, own_shift = batch_norm_affine(self.norm)
            scale, shift = own_scale * scale, own_scale * shift + own_shift
            self.norm = nn.Identity()
        fold_before(self.k, scale, shift)
        fold_before(self.v, scale, shift)


class ConvBlock(nn.Module):
    """Next convolution block (NCB): adapter, x + MHCA(x), x + MLP(BN(x)). (N, I, H, W) -> (N, O, H/stride, W/stride)."""

    def __init__(self, in_channels: int, dim: int, stride: int, head_dim: int, drop_path: float):
        super().__init__()
        self.patch_embed = patch_adapter(in_channels, dim, stride)
        self.mhca = ConvAttention(dim, head_dim)
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = FeedForward2d(dim, 3 * dim, relu=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = x + self.drop_path(self.mhca(x))
        return x + self.drop_path(self.mlp(self.norm(x)))

    def merge(self) -> None:
        """Fold the norm into the MLP (evaluation only; see `layers.reparam.deploy`)."""
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_before(self.mlp.fc1, *batch_norm_affine(self.norm))
            self.norm = nn.Identity()


class TransformerBlock(nn.Module):
    """Next transformer block (NTB): three quarters of the channels come from attention, the rest is convolved from them.

    Adapter, x + E-MHSA(BN(x)); y = adapter(x), y + MHCA(y); of x and y concatenated, z + MLP(BN(z)).
    (N, I, H, W) -> (N, O, H/stride, W/stride).
    """

    def __init__(self, in_channels: int, dim: int, stride: int, head_dim: int, reduction: int, drop_path: float):
        super().__init__()
        wide = dim * 3 // 4
        self.patch_embed = patch_adapter(in_channels, wide, stride)
        self.norm1 = nn.BatchNorm2d(wide)
        self.e_mhsa = EfficientAttention(wide, wide // head_dim, reduction)
        self.projection = PatchAdapter(wide, dim - wide)
        self.mhca = ConvAttention(dim - wide, head_dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = FeedForward2d(dim, 2 * dim, relu=True)
        self.attention_drop_path = DropPath(0.75 * drop_path)
        self.conv_drop_path = DropPath(0.25 * drop_path)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        tokens = self.e_mhsa(self.norm1(x).flatten(2).transpose(1, 2))
        x = x + self.attention_drop_path(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
        y = self.projection(x)
        y = y + self.conv_drop_path(self.mhca(y))
        x = torch.cat([x, y], 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def merge(self) -> None:
        """Fold the norms into attention and MLP (evaluation only; see `layers.reparam.deploy`)."""
        if isinstance(self.norm1, nn.BatchNorm2d):
            self.e_mhsa.fold_norms(*batch_norm_affine(self.norm1))
            fold_before(self.mlp.fc1, *batch_norm_affine(self.norm2))
            self.norm1, self.norm2 = nn.Identity(), nn.Identity()


@MODELS.register_module()
class NextViT(Backbone):
    """Next-ViT. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3), without norms; sides round up.

    The first stage has convolution blocks only; in the others every fifth block, and the last, is a transformer block.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims: channels of the maps; from the second stage on, convolution blocks have three quarters of them.
        depths: blocks of the stages; that of a stage with more than five is a multiple of five.
        stem: channels of the first three convolutions.
        head_dim: channels of an attention head, and of a group of the 3x3 convolutions.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have the detectors' rates
            (the segmentors': 0.2 for all).
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages.
        norm_eval: batch norms use their running statistics also in training, as in the paper's detectors.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "nextvit"
    arxiv = "2207.05501"
    #: Square roots of how many tokens are averaged to a key, in each stage.
    reductions = (8, 4, 2, 1)
    variants = {
        "small": dict(depths=(3, 4, 10, 3), drop_path_rate=0.1),
        "base": dict(depths=(3, 4, 20, 3), drop_path_rate=0.2),
        "large": dict(depths=(3, 4, 30, 3), drop_path_rate=0.2),
        "debug": dict(dims=(8, 16, 32, 32), depths=(1, 2, 5, 2), stem=(8, 4, 8), head_dim=4, drop_path_rate=0.1),
    }

    def __init__(
        self,
        arch: str = "small",
        *,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        stem: Sequence[int] | None = None,
        head_dim: int | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, depths=depths, stem=stem, head_dim=head_dim, drop_path_rate=drop_path_rate)
        s = dict(dims=(96, 256, 512, 1024), stem=(64, 32, 64), head_dim=32) | self.settings(arch, given)
        self.depths, self.norm_eval = tuple(s["depths"]), norm_eval
        channels = (3, *s["stem"], s["stem"][-1])
        self.stem = nn.Sequential(
            *(ConvNorm(channels[i], channels[i + 1], 3, stride, act="relu") for i, stride in enumerate((2, 1, 1, 2)))
        )
        self.features = nn.ModuleList()
        width = channels[-1]
        for stage, rates in enumerate(drop_rates(s["drop_path_rate"], self.depths)):
            dim = s["dims"][stage]
            self.features.extend(self._blocks(stage, width, dim, s["head_dim"], rates))
            width = dim
        self.apply(init_linear_and_conv)
        self._set_features(s["dims"], self.strides)
        self.num_layers = sum(self.depths)
        if frozen_stages >= 0:
            freeze(self.stem, *self.features[: sum(self.depths[:frozen_stages])])
        self.train()

    def _blocks(self, stage: int, width: int, dim: int, head_dim: int, rates: Sequence[float]) -> list[nn.Module]:
        """The blocks of a stage: (N, width, H, W) -> (N, dim, h, w)."""
        if stage == 0:
            return [ConvBlock(width if j == 0 else dim, dim, 1, head_dim, rate) for j, rate in enumerate(rates)]
        period, inner, blocks = min(5, len(rates)), dim * 3 // 4, []
        if len(rates) % period:
            raise UserError(f"A stage of Next-ViT with {len(rates)} blocks ends in no transformer block: give a multiple of 5.")
        for j, rate in enumerate(rates):
            stride = 2 if j == 0 else 1
            if (j + 1) % period:
                blocks.append(ConvBlock(width, inner, stride, head_dim, rate))
                width = inner
            else:
                blocks.append(TransformerBlock(width, dim, stride, head_dim, self.reductions[stage], rate))
                width = dim
        return blocks

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs, blocks = [], iter(self.features)
        for i in range(max(self.out_indices) + 1):
            for _ in range(self.depths[i]):
                x = self.run_stage(next(blocks), x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block."""
        kind, number, *_ = name.split(".")
        return 0 if kind == "stem" else 1 + int(number)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours; what only a classifier has goes."""
        return {_rename(key): value for key, value in state_dict.items() if not key.startswith(("norm.", "proj_head."))}


def _rename(key: str) -> str:
    key = key.replace(".mhca.group_conv3x3.", ".mhca.conv.conv.").replace(".mhca.norm.", ".mhca.conv.norm.")
    return key.replace(".mlp.conv", ".mlp.fc")
