"""SHViT: a three-stage network with a stem of stride 16 and attention of one head on a part of the channels.

Paper: "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design" (arXiv 2401.16456).
`mmvit.layers.reparam.deploy` merges the batch norms, and the shortcuts around depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm, ResidualDepthwise
from mmvit.layers.squeeze import SqueezeExcite
from mmvit.registry import MODELS

from .base import Backbone, freeze, renamed


class ConvFFN(nn.Module):
    """Two 1x1 convolutions with norms, ReLU between them; 2 C inside. (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.pw1 = ConvNorm(dim, 2 * dim, act="relu")
        self.pw2 = ConvNorm(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.pw1(x))


class SingleHeadAttention(nn.Module):
    """Single-head self-attention (SHSA): the first `partial` channels attend, the others pass by.

    (N, C, H, W) -> (N, C, H, W).
    """

    qk_dim = 16

    def __init__(self, dim: int, partial: int):
        super().__init__()
        self.split = partial, dim - partial
        self.pre_norm = nn.GroupNorm(1, partial)
        self.qkv = ConvNorm(partial, 2 * self.qk_dim + partial)
        self.proj = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        u, rest = x.split(self.split, 1)
        qkv = self.qkv(self.pre_norm(u)).flatten(2).transpose(1, 2).unsqueeze(1)  # (N, 1, H*W, 2d + partial)
        query, key, value = qkv.split((self.qk_dim, self.qk_dim, self.split[0]), -1)
        u = F.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.proj(F.relu(torch.cat([u, rest], 1)))


class Block(nn.Module):
    """x + depthwise(x); x + SHSA(x) unless `partial` is None; x + FFN(x). (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, dim: int, partial: int | None = None):
        super().__init__()
        self.conv = ResidualDepthwise(dim)
        self.mixer = SingleHeadAttention(dim, partial) if partial is not None else None
        self.ffn = ConvFFN(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.mixer is not None:
            x = x + self.mixer(x)
        return x + self.ffn(x)


class PatchMerging(nn.Module):
    """1x1, depthwise 3x3 of stride 2, channel gate, 1x1; 4 I channels inside. (N, I, H, W) -> (N, O, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        hidden = 4 * in_channels
        self.conv1 = ConvNorm(in_channels, hidden, act="relu")
        self.conv2 = ConvNorm(hidden, hidden, 3, 2, groups=hidden, act="relu")
        self.se = SqueezeExcite(hidden, (in_channels + 4) // 8 * 8)
        self.conv3 = ConvNorm(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.se(self.conv2(self.conv1(x))))


@MODELS.register_module()
class SHViT(Backbone):
    """SHViT. (N, 3, H, W) -> maps of stride 16, 32, 64 (`out_indices` 0 to 2), without norms; sides round up.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims, depths: channels and blocks of the stages.
        partial_dims: channels that attend in each stage; None where no block has attention.
        branch_init: first factor of the norms that end residual branches. The debug variant has 1, for gradients everywhere.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages.
        norm_eval: batch norms use their running statistics also in training, as in the paper's detectors.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "shvit"
    arxiv = "2401.16456"
    strides = (16, 32, 64)
    variants = {
        "s1": dict(dims=(128, 224, 320), depths=(2, 4, 5), partial_dims=(None, 48, 68)),
        "s2": dict(dims=(128, 308, 448), depths=(2, 4, 5), partial_dims=(None, 66, 96)),
        "s3": dict(dims=(192, 352, 448), depths=(3, 5, 5), partial_dims=(None, 75, 96)),
        "s4": dict(dims=(224, 336, 448), depths=(4, 7, 6), partial_dims=(None, 72, 96)),
        "debug": dict(dims=(16, 20, 24), depths=(1, 2, 1), partial_dims=(None, 6, 7), branch_init=1.0),
    }

    def __init__(
        self,
        arch: str = "s4",
        *,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        partial_dims: Sequence[int | None] | None = None,
        branch_init: float | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        out_indices: Sequence[int] = (0, 1, 2),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, depths=depths, partial_dims=partial_dims, branch_init=branch_init)
        s = {"branch_init": 0.0, **self.settings(arch, given)}
        self.depths, self.norm_eval = tuple(s["depths"]), norm_eval
        dims = s["dims"]
        channels = (3, *(dims[0] // part for part in (8, 4, 2, 1)))
        self.patch_embed = nn.Sequential(
            *(ConvNorm(channels[i], channels[i + 1], 3, 2, act="relu" if i < 3 else None) for i in range(4))
        )
        for i, (dim, depth, partial) in enumerate(zip(dims, self.depths, s["partial_dims"], strict=True)):
            before = (Block(dims[i - 1]), PatchMerging(dims[i - 1], dim), Block(dim)) if i else ()
            self.add_module(f"blocks{i + 1}", nn.Sequential(*before, *(Block(dim, partial) for _ in range(depth))))
        self._initialise(s["branch_init"])
        self._set_features(dims, self.strides)
        self.num_layers = sum(self.depths)
        if frozen_stages >= 0:
            freeze(self.patch_embed, *self._stages()[:frozen_stages])
        self.train()

    def _stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"blocks{i + 1}") for i in range(3)]

    def _initialise(self, branch_init: float) -> None:
        """The last norms of residual branches start at `branch_init`, but depthwise ones around a patch merging at 1."""
        for i, stage in enumerate(self._stages()):
            for j, block in enumerate(stage):
                if not isinstance(block, Block):
                    continue
                ends = [block.ffn.pw2] + ([block.conv] if i == 0 or j > 2 else [])
                for end in ends + ([block.mixer.proj] if block.mixer is not None else []):
                    nn.init.constant_(end.norm.weight, branch_init)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        outputs = []
        for i, stage in enumerate(self._stages()[: max(self.out_indices) + 1]):
            for block in stage:
                x = self.run_stage(block, x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block; a patch merging and the blocks around it go with the block after them."""
        kind, number, *_ = name.split(".")
        if kind == "patch_embed":
            return 0
        stage, block = int(kind[-1]) - 1, int(number)
        return sum(self.depths[:stage]) + 1 + (max(0, block - 3) if stage else block)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours; what only a classifier has goes."""
        return renamed(state_dict, _NAMES, dropped=("head",))


#: (official name, ours), regular expressions in order of application.
_NAMES = (
    (r"^(blocks[23]\.[02])\.0\.m\.", r"\1.conv."),
    (r"^(blocks[23]\.[02])\.1\.m\.", r"\1.ffn."),
    (r"\.m\.", "."),
    (r"\.proj\.1\.", ".proj."),
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
    (r"^patch_embed\.(\d)", lambda match: f"patch_embed.{int(match[1]) // 2}"),
)
