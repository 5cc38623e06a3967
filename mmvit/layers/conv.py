"""Convolution + normalisation + activation, and the merging of the first two for deployment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str | None, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, None: nn.Identity}


def activation(name: str | None) -> nn.Module:
    """A new activation module: ``relu``, ``silu``, ``gelu`` (exact) or None for the identity."""
    return _ACTIVATIONS[name](inplace=True) if name in ("relu", "silu") else _ACTIVATIONS[name]()


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine are buffers: y = x*s + (b - m*s), s = w / sqrt(v + eps).

    Shapes: (N, C, H, W) -> (N, C, H, W). Keys are those of `nn.BatchNorm2d` without ``num_batches_tracked``.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(prefix + "num_batches_tracked", None)  # an ordinary BN's checkpoint loads, too
        super()._load_from_state_dict(state_dict, prefix, *args)


def batch_norm(channels: int, frozen: bool = False) -> nn.Module:
    """A (frozen) batch normalisation over `channels`."""
    return FrozenBatchNorm2d(channels) if frozen else nn.BatchNorm2d(channels)


def merged_conv_weights(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the one convolution that equals `norm(conv(x))` in evaluation."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    return conv.weight * scale[:, None, None, None], norm.bias + bias * scale


def conv_from(kernel: Tensor, bias: Tensor, **settings) -> nn.Conv2d:
    """A convolution with the given kernel (O, I/groups, k, k) and bias (O); `settings`: stride, padding, dilation, groups."""
    out_channels, in_channels, *size = kernel.shape
    conv = nn.Conv2d(
        in_channels * settings.get("groups", 1), out_channels, size, **settings, device=kernel.device, dtype=kernel.dtype
    )
    with torch.no_grad():
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias)
    return conv.requires_grad_(False)


def set_batch_norms(module: nn.Module, eps: float, momentum: float = 0.1) -> None:
    """Give all batch norms of `module` other constants than PyTorch's."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eps, norm.momentum = eps, momentum
        elif isinstance(norm, FrozenBatchNorm2d):
            norm.eps = eps


class ConvNorm(nn.Module):
    """`act(norm(conv(x)))`, padding dilation * (k - 1) // 2. (N, I, H, W) -> (N, O, H/stride, W/stride).

    The norm is a batch norm unless another module is given as `norm`; the convolution has no bias unless `bias` is set.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        act: str | None = None,
        frozen_norm: bool = False,
        padding: int | None = None,
        norm: nn.Module | None = None,
        bias: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.norm = batch_norm(out_channels, frozen_norm) if norm is None else norm
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def merge(self) -> None:
        """Fold the normalisation into the convolution (evaluation only; see `layers.reparam.deploy`)."""
        if not isinstance(self.norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            return
        conv = self.conv
        settings = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)
        self.conv = conv_from(*merged_conv_weights(conv, self.norm), **settings)
        self.norm = nn.Identity()


class ResidualDepthwise(ConvNorm):
    """`x + norm(conv(x))` with a depthwise convolution, one convolution after `merge`. (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, dim: int, kernel_size: int = 3):
        super().__init__(dim, dim, kernel_size, groups=dim)
        self.residual = True

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.residual else self.conv(x)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the normalisation and the shortcut into the convolution (evaluation only; see `layers.reparam.deploy`)."""
        if self.residual:
            super().merge()
            centre = self.conv.kernel_size[0] // 2
            self.conv.weight[:, :, centre, centre] += 1
            self.residual = False


class RepVGGBlock(nn.Module):
    """`act(conv3x3-BN(x) + conv1x1-BN(x))`, one 3x3 convolution after `merge` (RepVGG, arXiv 2101.03697, no identity branch).

    Shapes: (N, C, H, W) -> (N, O, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, act: str | None = "silu"):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3)
        self.conv2 = ConvNorm(in_channels, out_channels, 1)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv"):
            return self.act(self.conv(x))
        return self.act(self.conv1(x) + self.conv2(x))

    def merge(self) -> None:
        """Fold both branches into one 3x3 convolution with bias; the branches go."""
        if hasattr(self, "conv"):
            return
        kernel3, bias3 = merged_conv_weights(self.conv1.conv, self.conv1.norm)
        kernel1, bias1 = merged_conv_weights(self.conv2.conv, self.conv2.norm)
        self.conv = conv_from(kernel3 + F.pad(kernel1, (1, 1, 1, 1)), bias3 + bias1, padding=1)
        del self.conv1, self.conv2
