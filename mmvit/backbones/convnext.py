"""ConvNeXt: a convolutional pyramid with 7x7 depthwise kernels.

Paper: "A ConvNet for the 2020s" (arXiv 2201.03545).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.drop import DropPath, drop_rates
from mmvit.layers.norm import LayerNorm2d
from mmvit.registry import MODELS

from .base import Backbone, freeze

EPS = 1e-6


class Block(nn.Module):
    """x + gamma * MLP(norm(depthwise 7x7(x))), hidden channels 4 C. (N, C, h, w) -> (N, C, h, w)."""

    def __init__(self, dim: int, drop_path: float, layer_scale_init: float):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


@MODELS.register_module()
class ConvNeXt(Backbone):
    """ConvNeXt. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3), each with its own norm; sides are floored.

    Args:
        arch: a name of `variants`; the following arguments override it.
        depths, dims: blocks and channels of the stages.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have UPerNet's rates.
        layer_scale_init: first value of the factors of the residual branches.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages (but no norm of an output).
        kmax_padding: pad as kMaX-DeepLab does (sides of 32 k + 1 become 8 k + 1, ...), and give the maps without norms.
        with_stem: return the map behind the stem (stride 4) as well, before the stages.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "convnext"
    arxiv = "2201.03545"
    rounds_down = True
    variants = {
        "tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768), drop_path_rate=0.4),
        "small": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768), drop_path_rate=0.3),
        "base": dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024), drop_path_rate=0.4),
        "large": dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), drop_path_rate=0.4),
        "xlarge": dict(depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048), drop_path_rate=0.4),
        "debug": dict(depths=(1, 1, 4, 1), dims=(8, 12, 16, 24), drop_path_rate=0.1),
    }

    def __init__(
        self,
        arch: str = "tiny",
        *,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        layer_scale_init: float = 1.0,
        frozen_stages: int = -1,
        kmax_padding: bool = False,
        with_stem: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        s = self.settings(arch, dict(depths=depths, dims=dims, drop_path_rate=drop_path_rate))
        dims = s["dims"]
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0], eps=EPS))
        self.downsample_layers = nn.ModuleList([stem])
        for before, dim in zip(dims[:-1], dims[1:]):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(before, eps=EPS), nn.Conv2d(before, dim, 2, 2)))
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(dim, rate, layer_scale_init) for rate in stage) for dim, stage in zip(dims, rates)
        )
        self.kmax_padding, self.with_stem = kmax_padding, with_stem
        for i in () if kmax_padding else self.out_indices:
            self.add_module(f"norm{i}", LayerNorm2d(dims[i], eps=EPS))
        self.apply(self._initialise)
        self._set_features(dims, self.strides)
        if with_stem:
            self.feature_info.insert(0, (dims[0], 4))
        self.num_layers = 3 + -(-s["depths"][2] // 3)
        if frozen_stages >= 0:
            freeze(self.downsample_layers[0], *self.downsample_layers[:frozen_stages], *self.stages[:frozen_stages])

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """Weights N(0, 0.02) truncated, biases 0."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for i in range(max(self.out_indices) + 1):
            if self.kmax_padding:
                x = F.pad(x, (0, 1, 0, 1) if i else (1, 2, 1, 2))
            x = self.downsample_layers[i](x)
            if self.with_stem and i == 0:
                outputs.append(x)
            for block in self.stages[i]:
                x = self.run_stage(block, x)
            if i in self.out_indices:
                outputs.append(x if self.kmax_padding else self.get_submodule(f"norm{i}")(x))
        return tuple(outputs)

    def layer_depth(self, name: str) -> int:
        """Stem 0; stage 0: 1; stage 1: 2; stage 2: from 3 on one step per 3 blocks; stage 3: `num_layers`.

        A downsampling layer goes with the stage after it. 6 steps in "tiny", 12 in the larger variants.
        """
        kind, *rest = name.split(".")
        if kind == "downsample_layers":
            return (0, 2, 3, self.num_layers)[int(rest[0])]
        if kind == "stages":
            stage, block = int(rest[0]), int(rest[1])
            return (1, 2, 3 + block // 3, self.num_layers)[stage]
        return self.num_layers + 1

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".gamma")}

    def dense_only(self) -> set[str]:
        return {name for name in self.state_dict() if re.match(r"norm\d", name)}

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository, or mmpretrain's -> ours; what only a classifier has goes."""
        names = {".depthwise_conv.": ".dwconv.", ".pointwise_conv1.": ".pwconv1.", ".pointwise_conv2.": ".pwconv2."}
        renamed = {}
        for key, value in state_dict.items():
            key = key.removeprefix("backbone.")
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
            if not key.startswith(("norm.", "head.")):
                pointwise = re.search(r"pwconv\d\.weight$", key)
                renamed[key] = value.flatten(1) if pointwise else value  # 1x1 convolutions -> linear layers
        return renamed
