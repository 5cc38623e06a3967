"""kMaX-DeepLab's pixel decoder (arXiv 2207.04044): axial blocks on the coarse maps, bottlenecks on the fine ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.axial import NORM_EPS, NORM_MOMENTUM, AxialAttention2d
from mmvit.layers.conv import ConvNorm, set_batch_norms
from mmvit.layers.drop import DropPath
from mmvit.layers.norm import LayerNorm2d
from mmvit.layers.resize import odd_resize
from mmvit.registry import MODELS


class Block(nn.Module):
    """Pre-activation block of kind ``axial`` or ``bottleneck`` with base width b. (B, I, H, W) -> (B, 4b, H, W)."""

    def __init__(self, in_channels: int, width: int, kind: str, drop_path: float = 0.0):
        super().__init__()
        inner = 2 * width if kind == "axial" else width
        self.conv1 = ConvNorm(in_channels, inner, act="gelu")
        self.attention = AxialAttention2d(inner) if kind == "axial" else None
        self.conv2 = ConvNorm(inner, inner, 3, act="gelu") if kind == "bottleneck" else None
        self.conv3 = ConvNorm(inner, 4 * width)
        self.shortcut = ConvNorm(in_channels, 4 * width) if in_channels != 4 * width else nn.Identity()
        self.drop_path = DropPath(drop_path)
        nn.init.zeros_(self.conv3.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(x)
        y = self.conv1(x)
        y = F.gelu(self.attention(y)) if self.attention is not None else self.conv2(y)
        return self.drop_path(self.conv3(y)) + self.shortcut(x)


class Fuse(nn.Module):
    """Bring a coarse and a fine map to one width and add them: (B, I, h, w), (B, J, H, W) -> (B, O, H, W)."""

    def __init__(self, low_channels: int, high_channels: int, out_channels: int):
        super().__init__()
        self.low = ConvNorm(low_channels, out_channels) if low_channels != out_channels else None
        self.high = ConvNorm(high_channels, out_channels) if high_channels != out_channels else None

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        low = low if self.low is None else self.low(F.gelu(low))
        high = high if self.high is None else self.high(F.gelu(high))
        return odd_resize(low, high.shape[-2:], low.shape[-1]) + high


@MODELS.register_module()
class KMaXPixelDecoder(nn.Module):
    """Maps of strides 4 to 32 -> (panoptic feature, [maps of strides 32, 16, 8] of 4 times the stage's width).

    Args:
        in_channels: of the maps, finest first.
        widths, depths, kinds: of the stages, coarsest first.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        widths: Sequence[int] = (512, 256, 128, 64),
        depths: Sequence[int] = (1, 5, 1, 1),
        kinds: Sequence[str] = ("axial", "axial", "bottleneck", "bottleneck"),
    ):
        super().__init__()
        coarse_first = list(in_channels)[::-1]
        self.in_norms = nn.ModuleList(LayerNorm2d(c, eps=1e-6) for c in coarse_first)
        self.stages, self.fuses = nn.ModuleList(), nn.ModuleList()
        channels = coarse_first[0]
        for i, (width, depth, kind) in enumerate(zip(widths, depths, kinds, strict=True)):
            blocks = [Block(channels if j == 0 else 4 * width, width, kind) for j in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            if i + 1 < len(widths):
                self.fuses.append(Fuse(4 * width, coarse_first[i + 1], widths[i + 1]))
                channels = widths[i + 1]
        self.out_channels, self.mask_dim = [4 * w for w in widths[:3]], 4 * widths[-1]
        set_batch_norms(self, NORM_EPS, NORM_MOMENTUM)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse_first = [norm(x) for norm, x in zip(self.in_norms, reversed(maps), strict=True)]
        x, outputs = coarse_first[0], []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            outputs.append(x)
            if i < len(self.fuses):
                x = self.fuses[i](x, coarse_first[i + 1])
        return x, outputs[:3]

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names -> ours."""
        return {_rename(key): value for key, value in state_dict.items()}


_NAMES = {
    "_attention._height_axis.": "attention.height.",
    "_attention._width_axis.": "attention.width.",
    "qkv_transform.conv.": "qkv.",
    "_batch_norm_qkv.": "qkv_norm.",
    "_batch_norm_similarity.": "similarity_norm.",
    "_batch_norm_retrieved_output.": "output_norm.",
    "_rpe._embeddings.": "_positions.",
    "_query_positions": "query_positions",
    "_key_positions": "key_positions",
    "_value_positions": "value_positions",
    "_in_norms.": "in_norms.",
    "_stages.": "stages.",
    "._blocks.": ".",
    "_resized_fuses.": "fuses.",
    "_conv_bn_low.": "low.",
    "_conv_bn_high.": "high.",
    "_conv1_bn_act.": "conv1.",
    "_conv2_bn_act.": "conv2.",
    "_conv3_bn.": "conv3.",
    "_shortcut.": "shortcut.",
}


def _rename(key: str) -> str:
    for theirs, ours in _NAMES.items():
        key = key.replace(theirs, ours)
    return key
