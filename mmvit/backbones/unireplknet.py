"""UniRepLKNet: a convolutional pyramid of 13x13 depthwise kernels that are trained as sums of dilated small ones.

Paper: "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image
Recognition" (arXiv 2311.15599). `mmvit.layers.reparam.deploy` merges the branches and all batch norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.conv import ConvNorm, conv_from, merged_conv_weights
from mmvit.layers.drop import DropPath, drop_rates
from mmvit.layers.norm import LayerNorm2d
from mmvit.layers.reparam import batch_norm_affine, fold_after, fold_before
from mmvit.layers.scale import LayerScale2d
from mmvit.layers.squeeze import SqueezeExcite
from mmvit.registry import MODELS

from .base import renamed
from .conv_pyramid import EPS, ConvPyramid

#: Side of a large kernel -> (side, dilation) of the small ones beside it.
BRANCHES = {
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class DilatedReparamBlock(nn.Module):
    """A large depthwise convolution and dilated small ones, each with its batch norm, summed. (N, C, H, W) -> the same.

    The small kernels are sparse large ones, so that all of it is one convolution after `merge`.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.origin = ConvNorm(dim, dim, kernel_size, groups=dim)
        self.branches = nn.ModuleDict(
            {f"k{k}_{r}": ConvNorm(dim, dim, k, dilation=r, groups=dim) for k, r in BRANCHES[kernel_size]}
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv"):
            return self.conv(x)
        out = self.origin(x)
        for branch in self.branches.values():
            out = out + branch(x)
        return out

    def merge(self) -> None:
        """Put one convolution in place of all (evaluation only; see `layers.reparam.deploy`)."""
        if hasattr(self, "conv"):
            return
        conv = self.origin.conv
        kernel, bias = merged_conv_weights(conv, self.origin.norm)
        for branch in self.branches.values():
            small, shift = merged_conv_weights(branch.conv, branch.norm)
            kernel, bias = kernel + dilated_kernel(small, branch.conv.dilation[0], kernel.shape[-1]), bias + shift
        self.conv = conv_from(kernel, bias, padding=conv.padding, groups=conv.groups)
        del self.origin, self.branches


def dilated_kernel(kernel: Tensor, dilation: int, side: int) -> Tensor:
    """The kernel (O, I, side, side) that without dilation does what `kernel` (O, I, k, k) does with it."""
    reach = dilation * (kernel.shape[-1] // 2)
    first, last = side // 2 - reach, side // 2 + reach + 1
    large = kernel.new_zeros(*kernel.shape[:2], side, side)
    large[:, :, first:last:dilation, first:last:dilation] = kernel
    return large


class GlobalResponseNorm(nn.Module):
    """Lets the channels of a map compete: x * (1 + gamma * N) + beta. (N, h, w, C) -> (N, h, w, C).

    N is the L2 norm of a channel over all positions, divided by the mean of those of all channels. Source: "ConvNeXt V2"
    (arXiv 2301.00808). Without `beta` after the network's deployment.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = (1 + self.gamma * (norm / (norm.mean(-1, keepdim=True) + EPS))).to(x.dtype)
        return x * scale if self.beta is None else torch.addcmul(self.beta.to(x.dtype), x, scale)


class Block(nn.Module):
    """x + gamma * BN(MLP(SE(BN(depthwise(x))))), with `GlobalResponseNorm` in the MLP. (N, C, h, w) -> (N, C, h, w).

    Args:
        dim: channels C; the MLP has 4 C inside.
        kernel_size: side of the depthwise kernel: 3, 5 or a key of `BRANCHES`.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, kernel_size: int, drop_path: float):
        super().__init__()
        if kernel_size in (3, 5):
            self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
        elif kernel_size in BRANCHES:
            self.dwconv = DilatedReparamBlock(dim, kernel_size)
        else:
            known = ", ".join(map(str, (3, 5, *BRANCHES)))
            raise UserError(f"UniRepLKNet has no kernels of side {kernel_size}. Give `kernels` of {known}.")
        self.norm = nn.BatchNorm2d(dim)
        self.se = SqueezeExcite(dim, dim // 4)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GlobalResponseNorm(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)
        self.scale = LayerScale2d(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self.dwconv(x))).permute(0, 2, 3, 1)
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)
        return x + self.drop_path(self.scale(self.norm2(y)))

    def merge(self) -> None:
        """Fold the branches, both batch norms, the offset of the MLP's norm and the layer scale into the layers around them."""
        if isinstance(self.norm, nn.Identity):
            return
        conv = self.dwconv
        if isinstance(conv, DilatedReparamBlock):
            conv.merge()
            conv = conv.conv
        self.dwconv = conv_from(*merged_conv_weights(conv, self.norm), padding=conv.padding, groups=conv.groups)
        fold_before(self.pwconv2, torch.ones_like(self.grn.beta).flatten(), self.grn.beta.flatten())
        fold_after(self.pwconv2, *batch_norm_affine(self.norm2))
        fold_after(self.pwconv2, self.scale.gamma, torch.zeros_like(self.scale.gamma))
        self.grn.beta = None
        self.norm, self.norm2, self.scale = nn.Identity(), nn.Identity(), nn.Identity()


def halving(in_channels: int, dim: int) -> list[nn.Module]:
    """A 3x3 convolution of stride 2 and a norm. (N, in_channels, H, W) -> (N, dim, ceil(H/2), ceil(W/2))."""
    return [nn.Conv2d(in_channels, dim, 3, 2, 1), LayerNorm2d(dim, eps=EPS)]


@MODELS.register_module()
class UniRepLKNet(ConvPyramid):
    """UniRepLKNet. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3), each with its own norm; sides round up.

    Args:
        arch: a name of `variants`; the following arguments override it.
        depths, dims: blocks and channels of the stages.
        kernels: for each stage, sides of the depthwise kernels, which its blocks take in turn.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants from "t" have UPerNet's
            rates ("xl": Cascade Mask R-CNN's), the smaller ones the classifiers'.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages (but no norm of an output).
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "unireplknet"
    arxiv = "2311.15599"
    variants = {
        "a": dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), drop_path_rate=0.0),
        "f": dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), drop_path_rate=0.0),
        "p": dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), drop_path_rate=0.1),
        "n": dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), drop_path_rate=0.1),
        "t": dict(depths=(3, 3, 18, 3), dims=(80, 160, 320, 640), kernels=((3,), (13,), (13, 3), (13,)), drop_path_rate=0.2),
        "s": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768), kernels=((3,), (13,), (13, 3, 3), (13,)), drop_path_rate=0.3),
        "b": dict(
            depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024), kernels=((3,), (13,), (13, 3, 3), (13,)), drop_path_rate=0.3
        ),
        "l": dict(
            depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), kernels=((3,), (13,), (13, 3, 3), (13,)), drop_path_rate=0.4
        ),
        "xl": dict(
            depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048), kernels=((3,), (13,), (13, 3, 3), (13,)), drop_path_rate=0.7
        ),
        "debug": dict(depths=(1, 1, 4, 1), dims=(16, 20, 24, 32), kernels=((3,), (7,), (13, 3), (7,)), drop_path_rate=0.1),
    }

    def __init__(
        self,
        arch: str = "t",
        *,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(depths=depths, dims=dims, kernels=kernels, drop_path_rate=drop_path_rate)
        s = {"kernels": ((3,), (13,), (13,), (13,)), **self.settings(arch, given)}
        dims = s["dims"]
        stem = nn.Sequential(*halving(3, dims[0] // 2), nn.GELU(), *halving(dims[0] // 2, dims[0]))
        halvings = (nn.Sequential(*halving(before, dim)) for before, dim in zip(dims[:-1], dims[1:]))
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        stages = [
            [Block(dim, sides[j % len(sides)], rate) for j, rate in enumerate(stage)]
            for dim, sides, stage in zip(dims, s["kernels"], rates, strict=True)
        ]
        self._assemble(dims, [stem, *halvings], stages, frozen_stages)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".scale.gamma")}

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours, also those of a merged network; what only a classifier has goes."""
        merged = any(key.endswith(".lk_origin.bias") for key in state_dict)
        origin = ".dwconv." if merged else ".dwconv.origin.conv."
        return renamed(state_dict, [(r"\.dwconv\.lk_origin\.", origin), *_NAMES])


#: (official name, ours), regular expressions in order of application.
_NAMES = (
    (r"\.dwconv\.origin_bn\.", ".dwconv.origin.norm."),
    (r"\.dil_conv_(k\d+_\d+)\.", r".branches.\1.conv."),
    (r"\.dil_bn_(k\d+_\d+)\.", r".branches.\1.norm."),
    (r"\.se\.down\.", ".se.fc1."),
    (r"\.se\.up\.", ".se.fc2."),
    (r"\.pwconv1\.1\.", ".pwconv1."),
    (r"\.act\.1\.", ".grn."),
    (r"\.pwconv2\.0\.", ".pwconv2."),
    (r"\.pwconv2\.2\.", ".norm2."),
    (r"^(stages\.\d+\.\d+)\.gamma$", r"\1.scale.gamma"),
)
