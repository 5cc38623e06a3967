"""HGNetv2 (PP-HGNetV2), the convolutional backbone of RT-DETR L, X and H.

Papers: "DETRs Beat YOLOs on Real-time Object Detection" (arXiv 2304.08069), "RT-DETRv2" (arXiv 2407.17140).
Input: RGB in [0, 1] without mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.registry import MODELS

from .base import Backbone, freeze


class LightConv(nn.Module):
    """1x1 convolution + norm, then depthwise k x k convolution + norm + ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, frozen_norm: bool):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 1, frozen_norm=frozen_norm)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel_size, groups=out_channels, act="relu", frozen_norm=frozen_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class HGBlock(nn.Module):
    """Six chained layers; the input and all their outputs are concatenated and aggregated by two 1x1 convolutions."""

    def __init__(
        self,
        in_channels: int,
        mid: int,
        out: int,
        *,
        light: bool,
        kernel_size: int,
        residual: bool,
        frozen_norm: bool,
        num_layers: int = 6,
    ):
        super().__init__()
        inputs = [in_channels] + [mid] * (num_layers - 1)
        if light:
            layers = [LightConv(i, mid, kernel_size, frozen_norm) for i in inputs]
        else:
            layers = [ConvNorm(i, mid, kernel_size, act="relu", frozen_norm=frozen_norm) for i in inputs]
        self.layers = nn.ModuleList(layers)
        self.aggregation_squeeze_conv = ConvNorm(
            in_channels + num_layers * mid, out // 2, 1, act="relu", frozen_norm=frozen_norm
        )
        self.aggregation_excitation_conv = ConvNorm(out // 2, out, 1, act="relu", frozen_norm=frozen_norm)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features[-1]))
        out = self.aggregation_excitation_conv(self.aggregation_squeeze_conv(torch.cat(features, 1)))
        return out + x if self.residual else out


class Stem(nn.Module):
    """Quarter-resolution stem with a convolution branch and a pooling branch. (N, 3, H, W) -> (N, C, H/4, W/4)."""

    def __init__(self, mid: int, out: int, frozen_norm: bool):
        super().__init__()
        settings = dict(act="relu", frozen_norm=frozen_norm)
        self.stem1 = ConvNorm(3, mid, 3, 2, **settings)
        self.stem2a = ConvNorm(mid, mid // 2, 2, padding=0, **settings)
        self.stem2b = ConvNorm(mid // 2, mid, 2, padding=0, **settings)
        self.stem3 = ConvNorm(mid * 2, mid, 3, 2, **settings)
        self.stem4 = ConvNorm(mid, out, 1, **settings)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.stem1(x), (0, 1, 0, 1))
        convolved = self.stem2b(F.pad(self.stem2a(padded), (0, 1, 0, 1)))
        pooled = F.max_pool2d(padded, 2, 1)
        return self.stem4(self.stem3(torch.cat([pooled, convolved], 1)))


class Stage(nn.Module):
    """Optional depthwise halving, then HG blocks (residual from the second on)."""

    def __init__(self, in_channels: int, mid: int, out: int, depth: int, *, downsample: bool, light: bool, frozen_norm: bool):
        super().__init__()
        self.downsample = (
            ConvNorm(in_channels, in_channels, 3, 2, groups=in_channels, frozen_norm=frozen_norm)
            if downsample
            else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *(
                HGBlock(
                    in_channels if i == 0 else out,
                    mid,
                    out,
                    light=light,
                    kernel_size=5 if light else 3,
                    residual=i > 0,
                    frozen_norm=frozen_norm,
                )
                for i in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


@MODELS.register_module()
class HGNetv2(Backbone):
    """PP-HGNetV2. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3); sides round up at every halving.

    Args:
        arch: ``l``, ``x``, ``h``, ``debug``; the following arguments override it.
        stem: inner and output channels of the stem.
        stages: (mid, out, blocks) of the four stages; the last two use light (depthwise) layers.
        freeze_norm: batch norms use fixed statistics and affines.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages.
    """

    family = "hgnetv2"
    arxiv = "2304.08069"
    variants = {
        "l": dict(stem=(32, 48), stages=((48, 128, 1), (96, 512, 1), (192, 1024, 3), (384, 2048, 1))),
        "x": dict(stem=(32, 64), stages=((64, 128, 1), (128, 512, 2), (256, 1024, 5), (512, 2048, 2))),
        "h": dict(stem=(48, 96), stages=((96, 192, 2), (192, 512, 3), (384, 1024, 6), (768, 2048, 3))),
        "debug": dict(stem=(8, 8), stages=((4, 8, 1), (4, 8, 1), (4, 16, 2), (4, 16, 1)), freeze_norm=False, frozen_stages=-1),
    }

    def __init__(
        self,
        arch: str = "l",
        *,
        stem: Sequence[int] | None = None,
        stages: Sequence[Sequence[int]] | None = None,
        freeze_norm: bool | None = None,
        frozen_stages: int | None = None,
        out_indices: Sequence[int] = (1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(stem=stem, stages=stages, freeze_norm=freeze_norm, frozen_stages=frozen_stages)
        s = {"freeze_norm": True, "frozen_stages": 0, **self.settings(arch, given)}
        self.stem = Stem(*s["stem"], s["freeze_norm"])
        inputs = [s["stem"][1]] + [out for _, out, _ in s["stages"]]
        self.stages = nn.ModuleList(
            Stage(inputs[i], *stage, downsample=i > 0, light=i > 1, frozen_norm=s["freeze_norm"])
            for i, stage in enumerate(s["stages"])
        )
        self._set_features(inputs[1:], self.strides)
        self.num_layers = sum(len(stage.blocks) for stage in self.stages)
        if s["frozen_stages"] >= 0:
            freeze(self.stem, *self.stages[: s["frozen_stages"]])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.run_stages(self.stem(x), self.stages))

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per HG block (a stage's downsampling counts with its first block)."""
        if not name.startswith("stages."):
            return 0
        _, stage, part, *rest = name.split(".")
        block = int(rest[0]) if part == "blocks" else 0
        return 1 + sum(len(s.blocks) for s in self.stages[: int(stage)]) + block

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names: the norm is ``bn`` and the stem's padded convolutions are ``conv.1``."""
        return {k.replace(".bn.", ".norm.").replace(".conv.1.", ".conv."): v for k, v in state_dict.items()}
