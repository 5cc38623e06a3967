"""The hybrid encoder of RT-DETR (arXiv 2304.08069): attention on the coarsest map (AIFI), then convolutional fusion (CCFM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.attention import SelfAttention
from mmvit.layers.conv import ConvNorm, RepVGGBlock, conv_from
from mmvit.layers.position import sincos_position_2d
from mmvit.registry import MODELS

CACHED_SIZES = 16  # map sizes whose position embedding is kept


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer with exact GELU. x, pos (B, T, C) -> (B, T, C)."""

    def __init__(self, dim: int, num_heads: int, feedforward: int):
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, pos))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class TransformerEncoder(nn.Module):
    """AIFI: encoder layers over the tokens of one map. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, num_heads: int, feedforward: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, feedforward) for _ in range(num_layers))
        self._positions: dict[tuple, Tensor] = {}

    def positions(self, x: Tensor) -> Tensor:
        """The position embedding for the map `x`, made once per size."""
        key = (*x.shape[1:], x.device, x.dtype)
        if key not in self._positions:
            if len(self._positions) == CACHED_SIZES:
                self._positions.clear()
            self._positions[key] = sincos_position_2d(x.shape[2], x.shape[3], x.shape[1], device=x.device, dtype=x.dtype)
        return self._positions[key]

    def forward(self, x: Tensor) -> Tensor:
        pos = self.positions(x)
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, pos)
        return tokens.transpose(1, 2).reshape(x.shape)


class CSPRepLayer(nn.Module):
    """conv3(B(conv1(x)) + conv2(x)) with B a chain of RepVGG blocks; conv3 only where the width changes.

    Shapes: (N, I, H, W) -> (N, O, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: float, depth: int = 3):
        super().__init__()
        hidden = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, hidden, 1, act="silu")
        self.conv2 = ConvNorm(in_channels, hidden, 1, act="silu")
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(hidden, hidden) for _ in range(depth)))
        self.conv3 = ConvNorm(hidden, out_channels, 1, act="silu") if hidden != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "both"):
            first, second = F.silu(self.both(x), inplace=True).chunk(2, 1)
        else:
            first, second = self.conv1(x), self.conv2(x)
        return self.conv3(self.bottlenecks(first) + second)

    def merge(self) -> None:
        """Join the two 1x1 convolutions that read the same input."""
        if hasattr(self, "both"):
            return
        self.conv1.merge()
        self.conv2.merge()
        self.both = conv_from(
            torch.cat([self.conv1.conv.weight, self.conv2.conv.weight]), torch.cat([self.conv1.conv.bias, self.conv2.conv.bias])
        )
        del self.conv1, self.conv2


@MODELS.register_module()
class HybridEncoder(nn.Module):
    """AIFI on the coarsest level, then top-down and bottom-up fusion.

    Shapes: maps (N, C_i, H/s_i, W/s_i), each level half the sides of the one before -> the same sides, `hidden_dim` channels.

    Args:
        in_channels: channels of the input levels, fine to coarse (read from the backbone's `feature_info`).
        hidden_dim: channels of all outputs.
        feedforward: inner width of the attention layers.
        expansion: width of the fusion blocks relative to `hidden_dim`.
        num_layers: attention layers on the coarsest level.
        num_heads: attention heads.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden_dim: int = 256,
        feedforward: int = 1024,
        expansion: float = 1.0,
        num_layers: int = 1,
        num_heads: int = 8,
    ):
        super().__init__()
        steps = range(len(in_channels) - 1)
        self.out_channels = [hidden_dim] * len(in_channels)
        self.input_proj = nn.ModuleList(ConvNorm(channels, hidden_dim, 1) for channels in in_channels)
        self.encoder = nn.ModuleList([TransformerEncoder(hidden_dim, num_heads, feedforward, num_layers)])
        self.lateral_convs = nn.ModuleList(ConvNorm(hidden_dim, hidden_dim, 1, act="silu") for _ in steps)
        self.fpn_blocks = nn.ModuleList(CSPRepLayer(2 * hidden_dim, hidden_dim, expansion) for _ in steps)
        self.downsample_convs = nn.ModuleList(ConvNorm(hidden_dim, hidden_dim, 3, 2, act="silu") for _ in steps)
        self.pan_blocks = nn.ModuleList(CSPRepLayer(2 * hidden_dim, hidden_dim, expansion) for _ in steps)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        for fine, coarse in zip(features[:-1], features[1:]):
            if fine.shape[-2] != 2 * coarse.shape[-2] or fine.shape[-1] != 2 * coarse.shape[-1]:
                raise UserError(
                    f"HybridEncoder: a map of {tuple(fine.shape[-2:])} is not twice the next one of "
                    f"{tuple(coarse.shape[-2:])}. Use input sides that are multiples of the coarsest stride."
                )
        maps = [proj(x) for proj, x in zip(self.input_proj, features)]
        maps[-1] = self.encoder[0](maps[-1])
        inner = [maps[-1]]  # coarse first; all but the last one are replaced by their lateral outputs
        for i, fine in enumerate(reversed(maps[:-1])):
            inner[-1] = self.lateral_convs[i](inner[-1])
            upsampled = F.interpolate(inner[-1], scale_factor=2.0, mode="nearest")
            inner.append(self.fpn_blocks[i](torch.cat([upsampled, fine], 1)))
        outputs = [inner[-1]]
        for i, lateral in enumerate(reversed(inner[:-1])):
            outputs.append(self.pan_blocks[i](torch.cat([self.downsample_convs[i](outputs[-1]), lateral], 1)))
        return outputs

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names (v1 numbers the parts of the input projections)."""
        out = {}
        for key, value in state_dict.items():
            parts = key.split(".")
            if parts[0] == "input_proj" and parts[2] in "01":
                parts[2] = ("conv", "norm")[int(parts[2])]
            out[".".join(parts)] = value
        return out
