"""VWFormer's pixel decoders for Mask2Former (arXiv 2404.16573): varying window attention on the fused map.

One group norm serves several convolutions, as in the published networks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.layers.resize import resize
from mmvit.layers.varying_window import PackedVaryingWindowAttention, PreScaling, branches
from mmvit.ops.sampling import at_least_float32
from mmvit.registry import MODELS

from .msdeform_pixel_decoder import LEVELS, DeformableEncoder

RATIOS = (2, 4, 8)


class _VWPixelDecoder(nn.Module):
    """What both share: projections to one width, branches, fusion, low-level enhancement."""

    low_level = 48

    def __init__(
        self, fine_channels: int, in_channels: Sequence[int], channels: int, mask_dim: int, num_heads: int, paths: int
    ):
        super().__init__()
        self.mask_dim = mask_dim
        self.norm = nn.GroupNorm(32, channels)
        self.projections = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in in_channels)  # coarsest first
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.short_path = nn.Conv2d(channels, channels, 1, bias=False)
        self.ds = nn.ModuleList(PreScaling(channels, ratio, bias=True) for ratio in RATIOS)
        self.attn = nn.ModuleList(PackedVaryingWindowAttention(channels, num_heads) for _ in RATIOS)
        self.cat = nn.Conv2d(paths * channels, channels, 1, bias=False)
        self.linear_c1 = ConvNorm(fine_channels, self.low_level, act="relu")
        self.low_level_fuse = ConvNorm(
            channels + self.low_level, mask_dim, act="relu", norm=nn.GroupNorm(min(32, mask_dim), mask_dim)
        )

    def shared(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """`conv`, the shared norm, ReLU."""
        return self.norm(conv(x)).relu()

    def paths(self, fused: Tensor) -> list[Tensor]:
        """What is fused besides the attention branches."""
        return [self.shared(self.short_path, fused)]

    def mask_features(self, fine: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """The map of stride 4 and those of strides 32, 16, 8 -> (B, mask_dim, H/4, W/4)."""
        size = maps[-1].shape[-2:]
        projected = [resize(self.shared(conv, x), size, "nearest") for conv, x in zip(self.projections, maps, strict=True)]
        fused = self.shared(self.fuse, torch.cat(projected, 1))
        found = self.shared(self.cat, torch.cat([*self.paths(fused), *branches(fused, self.ds, self.attn, RATIOS)], 1))
        low = self.linear_c1(fine)
        return self.low_level_fuse(torch.cat([resize(found, low.shape[-2:]), low], 1))

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names -> ours. Of the copies of the shared norm the last one counts."""
        out = {}
        for key, value in state_dict.items():
            key = key.replace("_0.", ".").replace("image_pool.1.", "image_pool.")
            if re.match(r"(linear_c[432]|linear_fuse|cat|short_path|image_pool)\.norm\.", key):
                key = f"norm.{key.rsplit('.', 1)[1]}"
            key = re.sub(r"^linear_c([432])\.", lambda m: f"projections.{4 - int(m[1])}.", key)
            key = key.replace("linear_fuse.", "fuse.")
            key = re.sub(r"^(linear_c1|low_level_fuse|ds\.\d|proj\.\d)\.(weight|bias)$", r"\1.conv.\2", key)
            out[key] = value
        return out


@MODELS.register_module()
class VWPixelDecoder(_VWPixelDecoder):
    """Maps of strides 4 to 32 -> (mask features (B, mask_dim, H/4, W/4), [maps of strides 32, 16, 8], each (B, dim, h, w)).

    Args:
        in_channels: of the four maps, finest first.
        channels: width of the branches.
        dim: channels of the maps for the query decoder.
        mask_dim: channels of the mask features.
        num_heads: of the window attention.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 512, dim: int = 256, mask_dim: int = 256, num_heads: int = 16
    ):
        super().__init__(in_channels[0], in_channels[:0:-1], channels, mask_dim, num_heads, 2 + len(RATIOS))
        self.image_pool = nn.Conv2d(channels, channels, 1, bias=False)
        self.proj = nn.ModuleList(ConvNorm(c, dim, act="relu", norm=nn.GroupNorm(min(32, dim), dim)) for c in in_channels[1:])
        self.out_channels = [dim] * LEVELS

    def paths(self, fused: Tensor) -> list[Tensor]:
        pooled = self.shared(self.image_pool, fused.mean((2, 3), keepdim=True))
        return [*super().paths(fused), resize(pooled, fused.shape[-2:])]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse = maps[:0:-1]
        outputs = [layer(x) for layer, x in zip(self.proj[::-1], coarse, strict=True)]
        return self.mask_features(maps[0], coarse), outputs


@MODELS.register_module()
class VWDeformAttnPixelDecoder(_VWPixelDecoder):
    """Mask2Former's deformable encoder, then varying window attention on its maps; shapes as `VWPixelDecoder`.

    Args: as `VWPixelDecoder`; `num_layers`, `encoder_heads`, `feedforward`, `num_points` are those of the encoder.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 512,
        dim: int = 256,
        mask_dim: int = 256,
        num_heads: int = 16,
        num_layers: int = 6,
        encoder_heads: int = 8,
        feedforward: int = 1024,
        num_points: int = 4,
    ):
        super().__init__(in_channels[0], [dim] * LEVELS, channels, mask_dim, num_heads, 1 + len(RATIOS))
        self.encoder = DeformableEncoder(in_channels[:0:-1], dim, num_layers, encoder_heads, feedforward, num_points)
        self.out_channels = [dim] * LEVELS

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(maps[0].device.type, enabled=False):
            encoded = self.encoder([at_least_float32(x) for x in maps[:0:-1]])
        return self.mask_features(maps[0], encoded), encoded

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = {k: v for k, v in state_dict.items() if k.startswith(("transformer.", "input_proj."))}
        rest = {k: v for k, v in state_dict.items() if k not in encoder}
        return DeformableEncoder.convert(encoder) | super().convert(rest)
