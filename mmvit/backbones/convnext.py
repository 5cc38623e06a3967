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
from mmvit.registry import MODELS

from .conv_pyramid import EPS, ConvPyramid, patch_layers


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
class ConvNeXt(ConvPyramid):
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
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        stages = [[Block(dim, rate, layer_scale_init) for rate in stage] for dim, stage in zip(dims, rates)]
        self._assemble(dims, patch_layers(dims), stages, frozen_stages, output_norms=not kmax_padding)
        self.kmax_padding, self.with_stem = kmax_padding, with_stem
        if with_stem:
            self.feature_info.insert(0, (dims[0], 4))

    def enter(self, stage: int, x: Tensor) -> Tensor:
        if self.kmax_padding:
            x = F.pad(x, (0, 1, 0, 1) if stage else (1, 2, 1, 2))
        return super().enter(stage, x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stem = self.enter(0, x)
        return ((stem,) if self.with_stem else ()) + self.run_from(stem)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".gamma")}

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
