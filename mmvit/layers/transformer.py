"""Parts that most vision transformers share."""

from __future__ import annotations

from torch import Tensor, nn

from .drop import DropPath


class PatchEmbed(nn.Module):
    """A strided convolution and a norm that turn a map into tokens. (N, C, H, W) -> (N, h, w, D), channels last."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int, padding: int, norm: nn.Module):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PreNormBlock(nn.Module):
    """x <- x + attn(norm1(x)); x <- x + mlp(norm2(x)), both branches with stochastic depth `drop_path`. Shapes stay.

    `scale1` and `scale2` (layer scales, say), if given, act on what the branches add.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        scale1: nn.Module | None = None,
        scale2: nn.Module | None = None,
    ):
        super().__init__()
        self.norm1, self.attn = norm1, attn
        self.norm2, self.mlp = norm2, mlp
        self.scale1, self.scale2 = scale1 or nn.Identity(), scale2 or nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
