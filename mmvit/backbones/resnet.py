"""ResNet with the stride in the 3x3 convolution, as detectron2, torchvision and mmdetection have it.

Paper: "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm, set_batch_norms
from mmvit.registry import MODELS

from .base import Backbone, freeze


class Bottleneck(nn.Module):
    """1x1 - 3x3 (stride) - 1x1 (x4) residual block; the first of a stage projects its shortcut. (N, I, ...) -> (N, 4W, ...)."""

    def __init__(self, in_channels: int, width: int, stride: int, project: bool, frozen_norm: bool):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 1, act="relu", frozen_norm=frozen_norm)
        self.conv2 = ConvNorm(width, width, 3, stride, act="relu", frozen_norm=frozen_norm)
        self.conv3 = ConvNorm(width, 4 * width, 1, frozen_norm=frozen_norm)
        self.shortcut = ConvNorm(in_channels, 4 * width, 1, stride, frozen_norm=frozen_norm) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


@MODELS.register_module()
class ResNet(Backbone):
    """(N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3); sides round up at every halving.

    Args:
        arch: a name of `variants`; the following arguments override it.
        depths: blocks of the four stages.
        width: channels of the stem and inner channels of the first stage.
        freeze_norm: batch norms use fixed statistics and affines, as detection recipes have it.
        norm_eps, norm_momentum: constants of the batch norms.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages.
        with_stem: return the pooled map of the stem (stride 4) as well, before the stages.
        out_indices: stages to return.
        with_cp: recompute stages in the backward pass (less memory).
    """

    family = "resnet"
    arxiv = "1512.03385"
    variants = {
        "50": dict(depths=(3, 4, 6, 3)),
        "101": dict(depths=(3, 4, 23, 3)),
        "debug": dict(depths=(1, 2, 1, 1), width=4),
    }

    def __init__(
        self,
        arch: str = "50",
        *,
        depths: Sequence[int] | None = None,
        width: int | None = None,
        freeze_norm: bool = False,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        frozen_stages: int = -1,
        with_stem: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        s = {"width": 64, **self.settings(arch, dict(depths=depths, width=width))}
        self.stem = ConvNorm(3, s["width"], 7, 2, act="relu", frozen_norm=freeze_norm)
        self.stages = nn.ModuleList()
        channels = s["width"]
        for i, depth in enumerate(s["depths"]):
            width = s["width"] * 2**i
            blocks = [
                Bottleneck(channels if j == 0 else 4 * width, width, 2 if i and j == 0 else 1, j == 0, freeze_norm)
                for j in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
            channels = 4 * width
        set_batch_norms(self, norm_eps, norm_momentum)
        self._set_features([4 * s["width"] * 2**i for i in range(4)], self.strides)
        self.with_stem = with_stem
        if with_stem:
            self.feature_info.insert(0, (s["width"], 4))
        self.num_layers = sum(s["depths"])
        self._initialise()
        if frozen_stages >= 0:
            freeze(self.stem, *self.stages[:frozen_stages])

    def _initialise(self) -> None:
        """Kaiming normal by the outputs, as published."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        stem = [x] if self.with_stem else []
        return tuple(stem + self.run_stages(x, self.stages))

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per residual block."""
        if not name.startswith("stages."):
            return 0
        _, stage, block, *_ = name.split(".")
        return 1 + sum(len(s) for s in self.stages[: int(stage)]) + int(block)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of detectron2 (``res2.0.conv1.norm``), torchvision and mmdetection (``layer1.0.bn1``) -> ours."""
        return {_rename(key): value for key, value in state_dict.items() if not key.startswith(("fc.", "stem.fc."))}


def _rename(key: str) -> str:
    if key.startswith(("res", "stem.conv1.")):  # detectron2
        key = re.sub(r"^res(\d)\.", lambda m: f"stages.{int(m[1]) - 2}.", key).replace("stem.conv1.", "stem.")
        return re.sub(r"(conv\d|shortcut|stem)\.weight$", r"\1.conv.weight", key)
    if key.startswith(("conv1.", "bn1.", "layer")):  # torchvision, mmdetection
        key = re.sub(r"^conv1\.", "stem.conv.", re.sub(r"^bn1\.", "stem.norm.", key))
        key = re.sub(r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.", key)
        key = key.replace("downsample.0.", "shortcut.conv.").replace("downsample.1.", "shortcut.norm.")
        return re.sub(r"\.bn(\d)\.", r".conv\1.norm.", re.sub(r"\.conv(\d)\.weight$", r".conv\1.conv.weight", key))
    return key
