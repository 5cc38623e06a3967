"""HorNet: a convolutional pyramid whose blocks multiply features recursively (recursive gated convolution).

Paper: "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions" (arXiv 2207.14284).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.drop import DropPath, drop_rates
from mmvit.layers.mlp import FeedForward
from mmvit.layers.norm import LayerNorm2d
from mmvit.layers.scale import LayerScale, LayerScale2d
from mmvit.registry import MODELS

from .base import renamed
from .conv_pyramid import EPS, ConvPyramid, patch_layers

#: Rows and columns of the spectrum (of the half that a real transform has) for which a global filter stores its factors.
Grid = tuple[int, int]


def resize_filter(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the factors of a spectrum bilinearly, corners aligned: (C, h, w, 2) -> (C, *size, 2), (real, imaginary) last."""
    if tuple(weight.shape[1:3]) == tuple(size):
        return weight
    resized = F.interpolate(weight.permute(3, 0, 1, 2), size, mode="bilinear", align_corners=True)
    return resized.permute(1, 2, 3, 0)


class GlobalLocalFilter(nn.Module):
    """Half of the channels through a 3x3 depthwise convolution, the others through a learnt filter in the frequency domain.

    (N, C, h, w) -> (N, C, h, w), with a norm before and after; the channels of both halves alternate in the result. The
    filter's factors are resized to the map's spectrum; its transforms run in float32 at least.
    """

    def __init__(self, dim: int, grid: Grid):
        super().__init__()
        self.pre_norm = LayerNorm2d(dim, eps=EPS)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, *grid, 2))
        self.post_norm = LayerNorm2d(dim, eps=EPS)
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        local, wide = self.pre_norm(x).chunk(2, 1)
        return self.post_norm(torch.stack([self.dw(local), self.filter(wide)], 2).flatten(1, 2))

    def filter(self, x: Tensor) -> Tensor:
        """Multiply the spectrum of each channel: (N, C/2, h, w) -> (N, C/2, h, w)."""
        height, width = x.shape[2:]
        precise = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft2(x.to(precise), norm="ortho")
            weight = resize_filter(self.complex_weight.to(precise), spectrum.shape[2:])
            spectrum = spectrum * torch.view_as_complex(weight.contiguous())
            return torch.fft.irfft2(spectrum, (height, width), norm="ortho").to(x.dtype)


class RecursiveGatedConv(nn.Module):
    """gnConv: products of order `order` + 1 between features, of which all but the first pass a large depthwise convolution.

    (N, C, h, w) -> (N, C, h, w). Paper, equations 3.3 to 3.5.

    Args:
        dim: channels C, a multiple of ``2 ** (order - 1)``.
        order: number of gatings; the k-th of them has ``C / 2 ** (order - 1 - k)`` channels.
        grid: use a global filter with factors for this grid in place of the 7x7 convolution.
    """

    #: Factor of the gates.
    scale = 1 / 3

    def __init__(self, dim: int, order: int, grid: Grid | None = None):
        super().__init__()
        self.widths = [dim // 2 ** (order - 1 - k) for k in range(order)]
        gates = sum(self.widths)
        self.proj_in = nn.Conv2d(dim, self.widths[0] + gates, 1)
        self.dwconv = nn.Conv2d(gates, gates, 7, padding=3, groups=gates) if grid is None else GlobalLocalFilter(gates, grid)
        self.pws = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(self.widths[:-1], self.widths[1:]))
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, gates = self.proj_in(x).tensor_split((self.widths[0],), 1)
        first, *gates = (self.dwconv(gates) * self.scale).split(self.widths, 1)
        x = x * first
        for conv, gate in zip(self.pws, gates):
            x = conv(x) * gate
        return self.proj_out(x)


class Block(nn.Module):
    """x <- x + gnconv(norm1(x)); x <- x + mlp(norm2(x)), both branches scaled by learnt factors. (N, C, h, w) stays."""

    def __init__(self, dim: int, order: int, grid: Grid | None, drop_path: float, layer_scale_init: float):
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=EPS)
        self.gnconv = RecursiveGatedConv(dim, order, grid)
        self.scale1 = LayerScale2d(dim, layer_scale_init)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim, 4 * dim)
        self.scale2 = LayerScale(dim, layer_scale_init)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1(self.gnconv(self.norm1(x))))
        y = self.scale2(self.mlp(self.norm2(x.permute(0, 2, 3, 1))))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


#: Grids of global filters for images of 224 and of 384 pixels: stages 0 and 1 have 7x7 convolutions.
GRIDS_224: tuple[Grid | None, ...] = (None, None, (14, 8), (7, 4))
GRIDS_384: tuple[Grid | None, ...] = (None, None, (24, 13), (12, 7))


@MODELS.register_module()
class HorNet(ConvPyramid):
    """HorNet. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3), each with its own norm; sides are floored.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim: channels of the first stage; each stage has twice those of the one before.
        depths, orders: blocks and orders of the gated convolutions of the stages.
        grids: for each stage, the grid of the global filters, or None for 7x7 convolutions. Filters are resized to the map, so
            a grid limits only what they can learn.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have UPerNet's rates.
        layer_scale_init: first value of the factors of the residual branches.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages (but no norm of an output).
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "hornet"
    arxiv = "2207.14284"
    rounds_down = True
    blocks_per_step = 2
    variants = {
        "tiny_7x7": dict(dim=64, drop_path_rate=0.4),
        "tiny_gf": dict(dim=64, grids=GRIDS_224, drop_path_rate=0.4),
        "small_7x7": dict(dim=96, drop_path_rate=0.3),
        "small_gf": dict(dim=96, grids=GRIDS_224, drop_path_rate=0.3),
        "base_7x7": dict(dim=128, drop_path_rate=0.4),
        "base_gf": dict(dim=128, grids=GRIDS_224, drop_path_rate=0.5),
        "large_7x7": dict(dim=192, drop_path_rate=0.4),
        "large_gf": dict(dim=192, grids=GRIDS_224, drop_path_rate=0.4),
        "large_gf_img384": dict(dim=192, grids=GRIDS_384, drop_path_rate=0.4),
        "7x7_debug": dict(dim=4, depths=(1, 1, 3, 1), orders=(2, 2, 3, 4), drop_path_rate=0.1),
        "gf_debug": dict(
            dim=4, depths=(1, 1, 3, 1), orders=(2, 2, 3, 4), grids=(None, None, (4, 3), (3, 2)), drop_path_rate=0.1
        ),
    }

    def __init__(
        self,
        arch: str = "tiny_7x7",
        *,
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        orders: Sequence[int] | None = None,
        grids: Sequence[Grid | None] | None = None,
        drop_path_rate: float | None = None,
        layer_scale_init: float = 1e-6,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dim=dim, depths=depths, orders=orders, grids=grids, drop_path_rate=drop_path_rate)
        s = dict(depths=(2, 3, 18, 2), orders=(2, 3, 4, 5), grids=(None,) * 4) | self.settings(arch, given)
        dims = [s["dim"] * 2**i for i in range(4)]
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        stages = [
            [Block(width, order, grid, rate, layer_scale_init) for rate in stage]
            for width, order, grid, stage in zip(dims, s["orders"], s["grids"], rates, strict=True)
        ]
        self._assemble(dims, patch_layers(dims), stages, frozen_stages)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".gamma")}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Global filters for images of another size are resized."""
        if name.endswith(".complex_weight"):
            return resize_filter(value, own.shape[1:3])
        return value

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours; what only a classifier has goes."""
        return renamed(state_dict, ((r"\.gamma(\d)$", r".scale\1.gamma"), (r"\.pwconv(\d)\.", r".mlp.fc\1.")))
