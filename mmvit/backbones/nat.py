"""NAT, DiNAT and DiNAT_s: four-stage pyramids in which every pixel attends to its nearest pixels.

Papers: "Neighborhood Attention Transformer" (arXiv 2204.07143) and "Dilated Neighborhood Attention Transformer" (arXiv
2209.15001).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import ClassVar

from torch import Tensor, nn

from mmvit.errors import UserError, did_you_mean
from mmvit.layers.drop import drop_rates
from mmvit.layers.mlp import FeedForward
from mmvit.layers.neighborhood import NeighborhoodAttention, resize_rpb
from mmvit.layers.scale import LayerScale
from mmvit.layers.transformer import PreNormBlock
from mmvit.registry import MODELS

from .base import renamed
from .swin import LevelPyramid, Stage, Swin

#: The dilations of one stage, repeated over its blocks.
Pattern = Sequence[int]

#: Published dilations of the four stages by what the network was trained for (data set, side of the images). One checkpoint
#: serves all of them.
DILATIONS: dict[str, tuple[Pattern, Pattern, Pattern, Pattern]] = {
    "none": ((1,), (1,), (1,), (1,)),
    "imagenet": ((1, 8), (1, 4), (1, 2), (1,)),
    "imagenet_384": ((1, 13), (1, 6), (1, 3), (1,)),
    "ade20k": ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),
    "ade20k_640": ((1, 20), (1, 5, 1, 10), (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5), (1, 2)),
    "coco": ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),
    "mask2former": ((1, 14), (1, 4, 1, 7), (1, 2, 1, 3) * 4 + (1, 3), (1,)),
}


def block_dilations(
    dilations: str | Sequence[Pattern], depths: Sequence[int], presets: dict[str, tuple[Pattern, ...]]
) -> list[list[int]]:
    """The dilation of each block, from a name of `presets` or from one pattern for each stage, repeated to its depth."""
    if isinstance(dilations, str):
        if dilations not in presets:
            raise UserError(
                f"There are no dilations {dilations!r}.{did_you_mean(dilations, presets)} Give one of {', '.join(presets)}, or "
                "a list for each stage."
            )
        dilations = presets[dilations]
    return [list(islice(cycle(pattern), depth)) for pattern, depth in zip(dilations, depths, strict=True)]


class ConvTokenizer(nn.Module):
    """Two strided convolutions with nothing in between, and a norm. (N, 3, H, W) -> (N, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(3, dim // 2, 3, 2, 1), nn.Conv2d(dim // 2, dim, 3, 2, 1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    """A strided convolution and a norm. (N, h, w, C) -> (N, ceil(h/2), ceil(w/2), 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@MODELS.register_module()
class NAT(LevelPyramid):
    """Neighborhood Attention Transformer. (N, 3, H, W) -> maps of stride 4, 8, 16, 32; sides round up at every halving.

    Inside, maps are (N, h, w, C).

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim: channels of the first stage; each stage has twice those of the one before.
        depths, num_heads: blocks and attention heads of the stages.
        kernel: side of the windows, odd.
        dilations: steps inside the windows: a name of `DILATIONS`, or for each stage those of its first blocks, repeated over
            the others. No parameter depends on them.
        mlp_ratio: hidden channels of the MLPs over the stage's channels.
        layer_scale_init: first value of the factors of the residual branches; None has no such factors.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have UPerNet's rates.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages with the downsampling after them. The norms
            of the outputs stay trainable.
        out_indices: stages to return, each through its own norm.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "nat"
    arxiv = "2204.07143"
    variants = {
        "mini": dict(dim=64, depths=(3, 4, 6, 5), num_heads=(2, 4, 8, 16), mlp_ratio=3, drop_path_rate=0.2),
        "tiny": dict(dim=64, depths=(3, 4, 18, 5), num_heads=(2, 4, 8, 16), mlp_ratio=3, drop_path_rate=0.3),
        "small": dict(dim=96, depths=(3, 4, 18, 5), num_heads=(3, 6, 12, 24), layer_scale_init=1e-5, drop_path_rate=0.5),
        "base": dict(dim=128, depths=(3, 4, 18, 5), num_heads=(4, 8, 16, 32), layer_scale_init=1e-5, drop_path_rate=0.5),
        "debug": dict(dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), kernel=3, drop_path_rate=0.1),
        "scaled_debug": dict(
            dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), kernel=5, layer_scale_init=1e-5, drop_path_rate=0.1
        ),
    }

    def __init__(
        self,
        arch: str = "mini",
        *,
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        kernel: int | None = None,
        dilations: str | Sequence[Pattern] | None = None,
        mlp_ratio: float | None = None,
        layer_scale_init: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dim=dim, depths=depths, num_heads=num_heads, kernel=kernel, dilations=dilations, mlp_ratio=mlp_ratio)
        given.update(layer_scale_init=layer_scale_init, drop_path_rate=drop_path_rate)
        s = dict(kernel=7, dilations="none", mlp_ratio=2, layer_scale_init=None) | self.settings(arch, given)
        dims = [s["dim"] * 2**i for i in range(4)]
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        steps = block_dilations(s["dilations"], s["depths"], DILATIONS)
        self.patch_embed = ConvTokenizer(dims[0])
        self.levels = nn.ModuleList()
        for i, (width, heads) in enumerate(zip(dims, s["num_heads"], strict=True)):
            blocks = []
            for rate, dilation in zip(rates[i], steps[i]):
                attention = NeighborhoodAttention(width, heads, s["kernel"], dilation)
                mlp = FeedForward(width, int(width * s["mlp_ratio"]))
                blocks.append(
                    PreNormBlock(
                        nn.LayerNorm(width),
                        attention,
                        nn.LayerNorm(width),
                        mlp,
                        rate,
                        *(LayerScale(width, s["layer_scale_init"]) for _ in range(2) if s["layer_scale_init"] is not None),
                    )
                )
            self.levels.append(Stage(blocks, ConvDownsampler(width) if i < 3 else None))
        self._complete(dims, frozen_stages)

    def level(self, stage: int) -> Stage:
        return self.levels[stage]

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith((".rpb", ".gamma"))}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Bias tables of another window size are resized bicubically."""
        return resize_rpb(value, own.shape[-1]) if name.endswith(".rpb") else value

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the papers' repository -> ours; what only a classifier has goes."""
        return renamed(state_dict, [(r"\.gamma(\d)$", r".scale\1.gamma")])


@MODELS.register_module()
class DiNAT(NAT):
    """Dilated Neighborhood Attention Transformer: `NAT` with dilated windows in every second block.

    The variants have the dilations of the papers' networks for ADE20K; `dilations` sets those for other image sizes.
    """

    family = "dinat"
    arxiv = "2209.15001"
    variants = {
        "mini": dict(NAT.variants["mini"], dilations="ade20k"),
        "tiny": dict(NAT.variants["tiny"], dilations="ade20k"),
        "small": dict(NAT.variants["small"], layer_scale_init=None, dilations="ade20k"),
        "base": dict(NAT.variants["base"], dilations="ade20k"),
        "large": dict(dim=192, depths=(3, 4, 18, 5), num_heads=(6, 12, 24, 48), drop_path_rate=0.3, dilations="ade20k_640"),
        "large_11x11": dict(
            dim=192, depths=(3, 4, 18, 5), num_heads=(6, 12, 24, 48), kernel=11, drop_path_rate=0.3, dilations="mask2former"
        ),
        "debug": dict(
            dim=8,
            depths=(1, 2, 2, 1),
            num_heads=(1, 2, 2, 4),
            kernel=3,
            drop_path_rate=0.1,
            dilations=((2,), (1, 3), (2, 1), (1,)),
        ),
    }


@MODELS.register_module()
class DiNATs(Swin):
    """DiNAT_s: `Swin` with dilated neighbourhood attention in place of windows.

    Args:
        arch: a name of `variants`; the other arguments override it.
        dilations: steps inside the windows: a name of `DiNATs.presets`, or for each stage those of its first blocks, repeated
            over the others. No parameter depends on them.
        settings: the other arguments of `Swin`; `window` is the side of the windows, odd.
    """

    family = "dinat_s"
    arxiv = "2209.15001"
    presets: ClassVar = {name: (first, second[-2:], *rest) for name, (first, second, *rest) in DILATIONS.items()}
    variants = {
        "tiny": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3, dilations="ade20k"),
        "small": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3, dilations="ade20k"),
        "base": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.3, dilations="ade20k"),
        "large": dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path_rate=0.3, dilations="ade20k_640"),
        "debug": dict(
            dim=8,
            depths=(2, 1, 2, 1),
            num_heads=(1, 2, 2, 4),
            window=3,
            mlp_ratio=2.0,
            drop_path_rate=0.1,
            dilations=((1, 4), (2,), (1, 2), (1,)),
        ),
    }

    def __init__(self, arch: str = "tiny", *, dilations: str | Sequence[Pattern] | None = None, **settings):
        super().__init__(arch, **settings)
        chosen = self.settings(arch, dict(dilations=dilations))["dilations"]
        for layer, steps in zip(self.layers, block_dilations(chosen, self.depths, self.presets)):
            for block, step in zip(layer.blocks, steps):
                block.attn.dilation = step

    def make_attention(self, stage: int, dim: int, num_heads: int, window: int, shifted: bool) -> nn.Module:
        return NeighborhoodAttention(dim, num_heads, window)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Bias tables of another window size are resized bicubically."""
        return resize_rpb(value, own.shape[-1]) if name.endswith(".rpb") else value
