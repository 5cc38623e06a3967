"""PEM's pixel decoder (arXiv 2402.19422): context-based self-modulation and deformable convolutions, no attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.ops.deform_conv import modulated_deform_conv2d
from mmvit.registry import MODELS


class SelfModulation(nn.Module):
    """x + x * w, w of the map's mean (two sigmoids in a row, as the published networks have it). (B, C, h, w) -> the same."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = dim // 2
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, dim, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mlp(x.mean((2, 3), keepdim=True)).sigmoid().sigmoid()
        return x + x * weight


class DeformUp(nn.Module):
    """Modulated deformable 3x3 convolution, and a transposed one to twice the sides. (B, C, h, w) -> the two maps."""

    def __init__(self, dim: int):
        super().__init__()
        self.dcn_offset = nn.Conv2d(dim, 27, 3, padding=1)
        self.weight = nn.Parameter(torch.empty(dim, dim, 3, 3))
        self.dcn_bn, self.up_bn = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.up_sample = nn.ConvTranspose2d(dim, dim, 4, 2, 1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.dcn_offset.weight)
        nn.init.zeros_(self.dcn_offset.bias)
        with torch.no_grad():  # bilinear enlargement, into the first output channel
            ramp = 1 - (torch.arange(4) - 1.5).abs() / 2
            self.up_sample.weight[:, 0] = ramp[:, None] * ramp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offset, scale = self.dcn_offset(x).split((18, 9), 1)
        x = modulated_deform_conv2d(x, offset, scale.sigmoid(), self.weight, padding=1)
        x = self.dcn_bn(x).relu()
        return x, self.up_bn(self.up_sample(x)).relu()


@MODELS.register_module()
class PEMPixelDecoder(nn.Module):
    """Maps of strides 4 to 32 -> (mask features (B, mask_dim, H/4, W/4), [maps of strides 32, 16, 8], each (B, dim, h, w)).

    Enlarged maps are cropped to the finer one, so that sides need not be multiples of 32.

    Args:
        in_channels: of the four maps, finest first.
        dim: width.
        mask_dim: channels of the mask features.
    """

    def __init__(self, in_channels: Sequence[int], dim: int = 128, mask_dim: int = 256):
        super().__init__()
        self.out_channels, self.mask_dim = [dim] * 3, mask_dim
        self.in_projections = nn.ModuleList(ConvNorm(c, dim, act="relu") for c in in_channels)
        self.conv_avg = ConvNorm(in_channels[-1], dim, act="relu")
        self.csm = nn.ModuleList(SelfModulation(dim) for _ in in_channels)
        self.dcn = nn.ModuleList(DeformUp(dim) for _ in range(3))
        self.out = ConvNorm(dim, mask_dim, act="relu")
        for module in self.modules():
            if isinstance(module, ConvNorm):
                nn.init.kaiming_normal_(module.conv.weight, a=1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse_first = [
            modulate(project(x)) for modulate, project, x in zip(self.csm, reversed(self.in_projections), reversed(maps))
        ]
        up = self.conv_avg(maps[-1].mean((2, 3), keepdim=True))
        outputs = []
        for x, layer in zip(coarse_first, self.dcn):
            x, up = layer(x + up[..., : x.shape[-2], : x.shape[-1]])
            outputs.append(x)
        fine = coarse_first[-1]
        return self.out(fine + up[..., : fine.shape[-2], : fine.shape[-1]]), outputs

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names -> ours."""
        out = {}
        for key, value in state_dict.items():
            if not key.startswith(("csm.", "dcn.")):
                key = key.replace(".bn.", ".norm.")
            out[key.replace(".mlp.0.mlp.", ".mlp.").replace(".dcn.weight", ".weight")] = value
        return out
