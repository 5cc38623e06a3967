"""A backbone outside the package."""

from torch import nn

from mmvit.backbones import Backbone
from mmvit.registry import MODELS


@MODELS.register_module()
class TinyNet(Backbone):
    family = "tinynet"
    variants = {"small": dict(width=16), "large": dict(width=64), "debug": dict(width=8)}  # tinynet_small, ...
    rounds_down = True

    def __init__(self, arch="small", *, width=None, out_indices=(0, 1, 2, 3), with_cp=False):
        super().__init__(out_indices, with_cp)
        width = self.settings(arch, dict(width=width))["width"]
        channels, before = [width * 2**i for i in range(4)], 3
        self.stages = nn.ModuleList()
        for i, after in enumerate(channels):
            step = 4 if i == 0 else 2
            self.stages.append(nn.Sequential(nn.Conv2d(before, after, step, step), nn.BatchNorm2d(after), nn.ReLU()))
            before = after
        self._set_features(channels, self.strides)

    def forward(self, x):
        return tuple(self.run_stages(x, self.stages))
