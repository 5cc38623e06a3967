"""STDC, the short-term dense concatenate network: the backbone of BiSeNet's successor for fast segmentation.

Paper: "Rethinking BiSeNet For Real-time Semantic Segmentation" (arXiv 2104.13188).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.registry import MODELS

from .base import Backbone, freeze


class CatBottleneck(nn.Module):
    """Four convolutions with 1/2, 1/4, 1/8, 1/8 of the channels, concatenated. (N, I, H, W) -> (N, O, H/s, W/s)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        widths = [out_channels // 2, out_channels // 4, out_channels // 8, out_channels // 8]
        self.conv_list = nn.ModuleList(
            ConvNorm(i, o, 1 if n == 0 else 3, act="relu") for n, (i, o) in enumerate(zip([in_channels, *widths], widths))
        )
        self.avd_layer = ConvNorm(widths[0], widths[0], 3, 2, groups=widths[0]) if stride == 2 else nn.Identity()
        self.skip = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_list[0](x)
        outputs, x = [self.skip(first)], self.avd_layer(first)
        for conv in self.conv_list[1:]:
            x = conv(x)
            outputs.append(x)
        return torch.cat(outputs, 1)


@MODELS.register_module()
class STDC(Backbone):
    """(N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3); sides round up at every halving.

    Args:
        arch: a name of `variants`; the following arguments override it.
        depths: blocks of the stages of stride 8, 16, 32.
        width: channels of stride 4; those of the stages are 4, 8 and 16 times as many.
        frozen_stages: -1 trains all, 0 and 1 freeze the stem (which is the stage of stride 4), k the first k stages.
        out_indices: stages to return.
        with_cp: recompute stages in the backward pass (less memory).
    """

    family = "stdc"
    arxiv = "2104.13188"
    variants = {
        "1": dict(depths=(2, 2, 2)),
        "2": dict(depths=(4, 5, 3)),
        "debug": dict(depths=(1, 2, 1), width=4),
    }

    def __init__(
        self,
        arch: str = "1",
        *,
        depths: Sequence[int] | None = None,
        width: int | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        s = {"width": 64, **self.settings(arch, dict(depths=depths, width=width))}
        channels = [s["width"] * factor for factor in (1, 4, 8, 16)]
        self.stem = nn.Sequential(
            ConvNorm(3, channels[0] // 2, 3, 2, act="relu"), ConvNorm(channels[0] // 2, channels[0], 3, 2, act="relu")
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    CatBottleneck(channels[i] if j == 0 else channels[i + 1], channels[i + 1], 2 if j == 0 else 1)
                    for j in range(depth)
                )
            )
            for i, depth in enumerate(s["depths"])
        )
        self._set_features(channels, self.strides)
        self.num_layers = sum(s["depths"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if frozen_stages >= 0:
            freeze(self.stem, *self.stages[: max(frozen_stages - 1, 0)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.run_stages(x, [self.stem, *self.stages]))

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block."""
        if not name.startswith("stages."):
            return 0
        _, stage, block, *_ = name.split(".")
        return 1 + sum(len(s) for s in self.stages[: int(stage)]) + int(block)

    def convert(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names: ``features.N`` counts stem and blocks; ``x2`` .. ``x32`` hold the same tensors once more and win."""
        first = [2 + sum(len(s) for s in self.stages[:i]) for i in range(len(self.stages))]
        out: dict[str, Tensor] = {}
        for aliases in (False, True):
            for key, value in state_dict.items():
                found = re.match(r"(features|x\d+\.0)\.(\d+)\.", key)
                if found is None or found[1].startswith("x") != aliases:
                    continue
                number, rest = int(found[2]), _plain(key[found.end() :])
                if number < 2:
                    out[f"stem.{number}.{rest}"] = value
                else:
                    stage = max(i for i, start in enumerate(first) if start <= number)
                    out[f"stages.{stage}.{number - first[stage]}.{rest}"] = value
        return out or state_dict


def _plain(name: str) -> str:
    name = name.replace("avd_layer.0.", "avd_layer.conv.").replace("avd_layer.1.", "avd_layer.norm.")
    return name.replace("bn.", "norm.") if name.startswith("bn.") else name.replace(".bn.", ".norm.")
