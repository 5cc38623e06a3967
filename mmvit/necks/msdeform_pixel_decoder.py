"""Mask2Former's pixel decoder (arXiv 2112.01527): deformable attention over three maps, one FPN step to stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.layers.deform_attn import MSDeformAttn
from mmvit.layers.position import sine_position_2d
from mmvit.ops.sampling import at_least_float32
from mmvit.registry import MODELS

LEVELS = 3


class DeformableEncoderLayer(nn.Module):
    """Post-norm encoder layer: deformable self-attention, feed-forward with ReLU. x, pos (B, T, C) -> (B, T, C)."""

    def __init__(self, dim: int, num_heads: int, feedforward: int, num_points: int):
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_heads, [num_points] * LEVELS)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor, pos: Tensor, points: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        x = self.norm1(x + self.self_attn(x + pos, points, x, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class DeformableEncoder(nn.Module):
    """Projects maps to one width and lets them exchange by deformable attention. Maps (B, C_i, h_i, w_i) -> (B, dim, h_i, w_i).

    Args:
        in_channels: of the maps, coarsest first.
    """

    def __init__(
        self, in_channels: Sequence[int], dim: int, num_layers: int, num_heads: int, feedforward: int, num_points: int
    ):
        super().__init__()
        self.dim = dim
        self.input_proj = nn.ModuleList(nn.Sequential(nn.Conv2d(c, dim, 1), nn.GroupNorm(32, dim)) for c in in_channels)
        self.level_embed = nn.Parameter(torch.randn(len(in_channels), dim))
        self.layers = nn.ModuleList(DeformableEncoderLayer(dim, num_heads, feedforward, num_points) for _ in range(num_layers))
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        projected = [layer(x) for layer, x in zip(self.input_proj, maps, strict=True)]
        shapes = [tuple(x.shape[-2:]) for x in projected]
        first = projected[0]
        pos = torch.cat(
            [
                sine_position_2d(h, w, self.dim, device=first.device, dtype=first.dtype) + embed
                for (h, w), embed in zip(shapes, self.level_embed)
            ],
            1,
        )
        points = pixel_centres(shapes, first)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], 1)
        for layer in self.layers:
            tokens = layer(tokens, pos, points.expand(len(tokens), -1, -1), shapes)
        split = tokens.split([h * w for h, w in shapes], 1)
        return [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(split, shapes)]

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's part of the official names of a pixel decoder -> ours, with the prefix ``encoder.``."""
        out = {}
        for key, value in state_dict.items():
            key = key.replace("transformer.encoder.", "encoder.").replace("transformer.", "encoder.")
            out[f"encoder.{key}" if key.startswith("input_proj.") else key] = value
        return out


def pixel_centres(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(1, sum h*w, 2): normalised xy of the centres of all pixels, row by row, map by map."""
    grids = []
    for height, width in shapes:
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
    return torch.cat(grids)[None]


@MODELS.register_module()
class MSDeformAttnPixelDecoder(nn.Module):
    """Maps of strides 4 to 32 -> (mask features (B, mask_dim, H/4, W/4), [maps of strides 32, 16, 8], each (B, dim, h, w)).

    Runs in float32 also under autocast, as published.

    Args:
        in_channels: of the four maps, finest first.
        dim: width.
        mask_dim: channels of the mask features.
        num_layers, num_heads, feedforward, num_points: of the deformable encoder.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward: int = 1024,
        num_points: int = 4,
    ):
        super().__init__()
        self.out_channels, self.mask_dim = [dim] * LEVELS, mask_dim
        self.encoder = DeformableEncoder(in_channels[:0:-1], dim, num_layers, num_heads, feedforward, num_points)
        self.adapter_1 = ConvNorm(in_channels[0], dim, norm=nn.GroupNorm(32, dim))
        self.layer_1 = ConvNorm(dim, dim, 3, act="relu", norm=nn.GroupNorm(32, dim))
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        for conv in (self.adapter_1.conv, self.layer_1.conv, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(maps[0].device.type, enabled=False):
            fine, *coarse = [at_least_float32(x) for x in maps]
            encoded = self.encoder(coarse[::-1])
            lateral = self.adapter_1(fine)
            top = F.interpolate(encoded[-1], lateral.shape[-2:], mode="bilinear", align_corners=False)
            return self.mask_features(self.layer_1(lateral + top)), encoded

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names -> ours."""
        renamed = {"adapter_1.weight": "adapter_1.conv.weight", "layer_1.weight": "layer_1.conv.weight"}
        return {renamed.get(key, key): value for key, value in DeformableEncoder.convert(state_dict).items()}
