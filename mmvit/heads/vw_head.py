"""VWFormer's decode heads: multi-scale representations by varying window attention (arXiv 2404.16573)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.conv import ConvNorm
from mmvit.layers.resize import resize
from mmvit.layers.varying_window import PackedVaryingWindowAttention, PreScaling, VaryingWindowAttention, branches
from mmvit.registry import MODELS

RATIOS = (2, 4, 8)


class FusedConv(ConvNorm):
    """`ConvNorm` of kernel 1 on the concatenation of maps of different sizes, resized bilinearly to one size.

    Each map meets its columns of the kernel before it is resized: the same numbers (both are linear) with fewer operations,
    and no concatenated map. `forward(maps, size)`: maps (N, C_i, h_i, w_i), sum of C_i = input channels -> (N, O, *size).
    """

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        kernels = self.conv.weight.split([x.shape[1] for x in maps], dim=1)
        parts = [resize(F.conv2d(x, kernel), size) for x, kernel in zip(maps, kernels, strict=True)]
        fused = sum(parts[1:], parts[0])
        if self.conv.bias is not None:
            fused = fused + self.conv.bias[:, None, None]
        return self.act(self.norm(fused))


class _VWBase(nn.Module):
    """What both heads share: branches, fusion of the branches, low-level enhancement, classifier."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int, short_cut: bool, dropout: float):
        super().__init__()
        if len(in_channels) != 4:
            raise UserError(
                f"{type(self).__name__} needs four maps (strides 4, 8, 16, 32), the backbone gives {len(in_channels)}."
            )
        if channels % RATIOS[-1] ** 2:
            raise UserError(
                f"{type(self).__name__}: channels={channels} must be a multiple of {RATIOS[-1] ** 2}: the context of ratio "
                f"{RATIOS[-1]} has channels / {RATIOS[-1] ** 2} channels."
            )
        self.in_channels, self.channels, self.num_classes = tuple(in_channels), channels, num_classes
        self.short_cut = short_cut
        self.linear_fuse = FusedConv(3 * channels, channels, act="relu")
        self.ds = nn.ModuleList(PreScaling(channels, ratio) for ratio in RATIOS)
        self.short_path = ConvNorm(channels, channels, act="relu")
        self.low_level_fuse = FusedConv(channels + self.low_level, channels, act="relu")
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)

    low_level = 48  # channels of the finest map

    def branches(self, x: Tensor) -> list[Tensor]:
        """One map of varying window attention for each ratio; (N, C, h, w) each, as x."""
        maps = branches(x, self.ds, self.attn, RATIOS)
        return [found + x for found in maps] if self.short_cut else maps

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of strides 8, 16, 32, coarsest first, with `channels` channels each."""
        raise NotImplementedError

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of strides 4, 8, 16, 32 -> (N, C, H/8, W/8), the input of the branches."""
        return self.linear_fuse(self.project(maps), maps[1].shape[-2:])

    def aggregate(self, fused: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w): all branches, fused."""
        raise NotImplementedError

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of strides 4, 8, 16, 32 -> logits (N, classes, H/4, W/4)."""
        aggregated = self.aggregate(self.fuse(maps))
        features = self.low_level_fuse([aggregated, self.linear_c1(maps[0])], maps[0].shape[-2:])
        return self.conv_seg(self.dropout(features))

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names -> ours; linear layers become 1x1 convolutions."""
        out = {}
        for key, value in state_dict.items():
            key = key.replace(".bn.", ".norm.").replace("image_pool.1.", "image_pool.")
            key = re.sub(r"^(linear_c\d)\.proj\.", r"\1.", key)
            key = re.sub(r"\.(theta|phi|g)\.conv\.", r".\1.", key)
            out[key] = value[..., None, None] if re.fullmatch(r"linear_c\d\.weight", key) and value.dim() == 2 else value
        return out


@MODELS.register_module()
class VWHead(_VWBase):
    """VWFormer's head for ADE20K: multi-layer aggregation, branches [short, image pool, r = 2, 4, 8], low-level enhancement.

    Args:
        in_channels: channels of the maps of strides 4, 8, 16, 32; any size, also sides that are no multiples of 64.
        channels: width C.
        num_classes: classes.
        num_heads: of the attention.
        short_cut: add the fused map to every attention branch.
        dropout: of channels, before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 512,
        num_classes: int = 150,
        *,
        num_heads: int = 1,
        short_cut: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__(in_channels, channels, num_classes, short_cut, dropout)
        self.linear_c1 = nn.Conv2d(in_channels[0], self.low_level, 1)
        self.linear_c2, self.linear_c3, self.linear_c4 = (nn.Conv2d(c, channels, 1) for c in in_channels[1:])
        self.image_pool = ConvNorm(channels, channels, act="relu")
        self.attn = nn.ModuleList(VaryingWindowAttention(channels, num_heads) for _ in RATIOS)
        self.cat = FusedConv(5 * channels, channels, act="relu")

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.linear_c4(maps[3]), self.linear_c3(maps[2]), self.linear_c2(maps[1])]

    def aggregate(self, fused: Tensor) -> Tensor:
        pooled = self.image_pool(fused.mean((2, 3), keepdim=True))
        return self.cat([self.short_path(fused), pooled, *self.branches(fused)], fused.shape[-2:])


@MODELS.register_module()
class VWCityHead(_VWBase):
    """VWFormer's head for Cityscapes: normalised projections, nearest resizing, multi-head attention, no image pooling.

    Args: as `VWHead`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 512,
        num_classes: int = 19,
        *,
        num_heads: int = 16,
        short_cut: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__(in_channels, channels, num_classes, short_cut, dropout)
        self.linear_c1 = ConvNorm(in_channels[0], self.low_level, act="relu")
        self.linear_c2, self.linear_c3, self.linear_c4 = (ConvNorm(c, channels, act="relu") for c in in_channels[1:])
        self.attn = nn.ModuleList(PackedVaryingWindowAttention(channels, num_heads) for _ in RATIOS)
        self.cat = FusedConv(4 * channels, channels, act="relu")

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        size = maps[1].shape[-2:]
        coarse = [resize(layer(x), size, "nearest") for layer, x in ((self.linear_c4, maps[3]), (self.linear_c3, maps[2]))]
        return [*coarse, self.linear_c2(maps[1])]

    def aggregate(self, fused: Tensor) -> Tensor:
        return self.cat([self.short_path(fused), *self.branches(fused)], fused.shape[-2:])
