"""PVT and PVT v2: four-stage pyramids of global attention whose keys and values are spatially reduced.

Papers: "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions" (arXiv 2102.12122) and
"PVT v2: Improved Baselines with Pyramid Vision Transformer" (arXiv 2106.13797).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import SpatialReductionAttention
from mmvit.layers.drop import drop_rates
from mmvit.layers.init import init_by_fan_out, init_linear
from mmvit.layers.mlp import ConvFeedForward, FeedForward
from mmvit.layers.position import resize_grid
from mmvit.layers.transformer import PatchEmbed, PreNormBlock
from mmvit.registry import MODELS

from .base import freeze
from .staged import StagedBackbone

OVERLAPPING = ((7, 4, 3), (3, 2, 1), (3, 2, 1), (3, 2, 1))
DISJOINT = ((4, 4, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))


class EmbeddingPyramid(StagedBackbone):
    """Four stages of a patch embedding, blocks on (N, h, w, C) and perhaps a norm. (N, 3, H, W) -> maps of stride 4 to 32.

    They are called ``patch_embed``, ``block`` and ``norm`` with the number of the stage, from 1.
    """

    #: Whether a norm ends each stage; its result is both the output and the input of the next stage.
    stage_norm: ClassVar[bool] = True

    def _freeze(self, stages: int) -> None:
        freeze(self.patch_embed1)
        for i in range(1, stages + 1):
            freeze(*(part for name, part in self.named_children() if re.fullmatch(rf"(patch_embed|block|norm){i}", name)))

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"patch_embed{stage + 1}")(x)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        return self.get_submodule(f"block{stage + 1}")

    def leave(self, stage: int, x: Tensor) -> Tensor:
        if self.stage_norm:
            x = self.get_submodule(f"norm{stage + 1}")(x)
        return x.permute(0, 3, 1, 2)

    def output(self, stage: int, x: Tensor) -> Tensor:
        return x

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block; a patch embedding goes with the block after it, a stage's norm with its last."""
        kind, number, block = re.match(r"(patch_embed|pos_embed|block|norm)(\d)(?:\.(\d+))?", name).groups()
        stage = int(number) - 1
        if kind == "block":
            return self.block_depth(stage, int(block))
        if kind == "norm":
            return self.block_depth(stage, self.depths[stage] - 1)
        return self.block_depth(stage) if stage else 0

    def dense_only(self) -> set[str]:
        """Nothing: the norms of the stages are a classifier's, too."""
        return set()


class PyramidTransformer(EmbeddingPyramid):
    """Four stages of a patch embedding and attention blocks. (N, 3, H, W) -> maps of stride 4, 8, 16, 32.

    A subclass chooses the parts by the class attributes and by overriding `make_norm`, `make_attention` and `make_mlp`.
    Inside a stage maps are (N, h, w, C).

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims, depths, num_heads: channels, blocks and attention heads of the stages.
        mlp_ratios: hidden channels of the MLPs over `dims`.
        sr_ratios: reduction of the key and value maps' sides.
        linear: keys and values from 7x7 averages of the map, and a ReLU in the MLP (PVT v2 "li").
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        frozen_stages: -1 trains all, 0 freezes the stem (first patch embedding), k also the first k stages.
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    #: (kernel, stride, padding) of the patch embeddings.
    patches: ClassVar[tuple[tuple[int, int, int], ...]]
    #: eps of the norms of patch embeddings and of reduced key and value maps.
    inner_eps: ClassVar[float] = 1e-5
    #: eps of the norms of blocks and stages.
    block_eps: ClassVar[float] = 1e-6
    #: First values of the weights.
    initialise: ClassVar[Callable[[nn.Module], None]] = staticmethod(init_by_fan_out)

    def __init__(
        self,
        arch: str,
        *,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] | None = None,
        sr_ratios: Sequence[int] | None = None,
        linear: bool | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios, sr_ratios=sr_ratios)
        given.update(linear=linear, drop_path_rate=drop_path_rate)
        defaults = dict(num_heads=(1, 2, 5, 8), sr_ratios=(8, 4, 2, 1), linear=False, drop_path_rate=0.1)
        s = {**defaults, **self.settings(arch, given)}
        self._set_depths(s["depths"])
        self.linear = s["linear"]
        channels = (3, *s["dims"])
        rates = drop_rates(s["drop_path_rate"], self.depths)
        for stage, dim in enumerate(s["dims"]):
            hidden, heads, reduction = int(dim * s["mlp_ratios"][stage]), s["num_heads"][stage], s["sr_ratios"][stage]
            self._add_stage(stage, channels[stage], dim, hidden, heads, reduction, rates[stage])
        self.apply(self.initialise)
        self._set_features(s["dims"], self.strides)
        if frozen_stages >= 0:
            self._freeze(frozen_stages)

    def _add_stage(
        self, stage: int, in_channels: int, dim: int, hidden_dim: int, num_heads: int, reduction: int, rates: list[float]
    ) -> None:
        embed = PatchEmbed(in_channels, dim, *self.patches[stage], self.make_norm(dim, self.inner_eps))
        blocks = nn.ModuleList(
            PreNormBlock(
                self.make_norm(dim, self.block_eps),
                self.make_attention(stage, dim, num_heads, reduction),
                self.make_norm(dim, self.block_eps),
                self.make_mlp(dim, hidden_dim),
                rate,
            )
            for rate in rates
        )
        self.add_module(f"patch_embed{stage + 1}", embed)
        self.add_module(f"block{stage + 1}", blocks)
        if self.stage_norm:
            self.add_module(f"norm{stage + 1}", self.make_norm(dim, self.block_eps))

    def make_norm(self, dim: int, eps: float) -> nn.Module:
        """A norm over the last of (N, ..., dim)."""
        return nn.LayerNorm(dim, eps=eps)

    def make_attention(self, stage: int, dim: int, num_heads: int, reduction: int) -> nn.Module:
        """The attention of a block of stage 0 to 3: (N, h, w, dim) -> (N, h, w, dim)."""
        norm = partial(self.make_norm, eps=self.inner_eps)
        return SpatialReductionAttention(dim, num_heads, reduction, norm, pooled=self.linear)

    def make_mlp(self, dim: int, hidden_dim: int) -> nn.Module:
        """The MLP of a block: (N, h, w, dim) -> (N, h, w, dim)."""
        return ConvFeedForward(dim, hidden_dim, relu=self.linear)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the papers' repositories, or OpenMMLab's, -> ours; what only a classifier has goes."""
        if any(key.startswith("layers.") for key in state_dict):
            state_dict = names_from_openmmlab(state_dict)
        return {
            key.replace(".dwconv.dwconv.", ".dwconv."): value
            for key, value in state_dict.items()
            if not key.startswith(("cls_token", "norm.", "head."))
        }


@MODELS.register_module()
class PVT(PyramidTransformer):
    """PVT (v1): disjoint patches, learnt position embeddings. Sides are floored; an output has no norm.

    The position embedding of a stage is bilinearly resized to maps of other sizes than those of 224 x 224 images.
    """

    family = "pvt"
    arxiv = "2102.12122"
    rounds_down = True
    patches = DISJOINT
    stage_norm = False
    initialise = staticmethod(init_linear)
    #: Side of the images whose maps the position embeddings have the size of.
    pretrain_size: ClassVar[int] = 224
    #: Whether the last position embedding starts with the (unused) entry of the classification token.
    class_slot: ClassVar[bool] = True
    variants = {
        "tiny": dict(dims=(64, 128, 320, 512), depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
        "small": dict(dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), mlp_ratios=(8, 8, 4, 4)),
        "medium": dict(dims=(64, 128, 320, 512), depths=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)),
        "large": dict(dims=(64, 128, 320, 512), depths=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)),
        "debug": dict(dims=(8, 16, 20, 32), depths=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 2)),
    }

    def _add_stage(self, stage: int, in_channels: int, dim: int, *settings) -> None:
        super()._add_stage(stage, in_channels, dim, *settings)
        grid = self.pretrain_size // self.strides[stage]
        slots = grid * grid + (self.class_slot and stage == 3)
        position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, slots, dim), std=0.02))
        self.register_parameter(f"pos_embed{stage + 1}", position)

    def make_mlp(self, dim: int, hidden_dim: int) -> nn.Module:
        return FeedForward(dim, hidden_dim)

    def _freeze(self, stages: int) -> None:
        super()._freeze(stages)
        for i in range(1, max(1, stages) + 1):
            self.get_parameter(f"pos_embed{i}").requires_grad_(False)

    def enter(self, stage: int, x: Tensor) -> Tensor:
        x = super().enter(stage, x)
        return x + self.position(stage, x.shape[1], x.shape[2])

    def position(self, stage: int, height: int, width: int) -> Tensor:
        """The position embedding of a stage's map, (1, height, width, C)."""
        grid = self.pretrain_size // self.strides[stage]
        table = self.get_parameter(f"pos_embed{stage + 1}")[:, -grid * grid :].unflatten(1, (grid, grid))
        return resize_grid(table, height, width)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters(recurse=False)}


@MODELS.register_module()
class PVTv2(PyramidTransformer):
    """PVT v2: overlapping patches, depthwise convolutions in the MLPs in place of position embeddings. Sides round up."""

    family = "pvt_v2"
    arxiv = "2106.13797"
    patches = OVERLAPPING
    variants = {
        "b0": dict(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
        "b1": dict(dims=(64, 128, 320, 512), depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
        "b2": dict(dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), mlp_ratios=(8, 8, 4, 4)),
        "b2_li": dict(dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), mlp_ratios=(8, 8, 4, 4), linear=True),
        "b3": dict(dims=(64, 128, 320, 512), depths=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)),
        "b4": dict(dims=(64, 128, 320, 512), depths=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)),
        "b5": dict(dims=(64, 128, 320, 512), depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
        "debug": dict(dims=(8, 16, 20, 32), depths=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 2)),
        "li_debug": dict(dims=(8, 16, 20, 32), depths=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 2), linear=True),
    }


def names_from_openmmlab(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdetection's names of PVT and PVT v2, and mmsegmentation's of MiT -> those of the papers' repositories."""
    first_block = int("layers.0.1.0.pos_embed" in state_dict)  # the position embedding counts as the first layer of a stage
    parts = {"0.projection": "patch_embed{}.proj", "0.norm": "patch_embed{}.norm", "2": "norm{}"}
    blocks = {"attn.attn.out_proj": "attn.proj", "ffn.layers.0": "mlp.fc1", "ffn.layers.1": "mlp.dwconv.dwconv"}
    blocks.update({"ffn.layers.3": "mlp.fc2", "ffn.layers.4": "mlp.fc2"})
    renamed = {}
    for key, value in state_dict.items():
        _, stage, rest = key.split(".", 2)
        number = int(stage) + 1
        if rest == "1.0.pos_embed":
            slot = number == 4 and value.shape[1] == 49  # theirs has no entry for the unused classification token
            renamed[f"pos_embed{number}"] = F.pad(value, (0, 0, 1, 0)) if slot else value
            continue
        if not rest.startswith("1."):
            part, _, leaf = rest.rpartition(".")
            renamed[f"{parts[part].format(number)}.{leaf}"] = value
            continue
        _, block, name = rest.split(".", 2)
        prefix = f"block{number}.{int(block) - first_block}"
        part, _, leaf = name.rpartition(".")
        if part == "attn.attn":  # in_proj_weight, in_proj_bias: rows of query, key and value
            dim, leaf = len(value) // 3, leaf.removeprefix("in_proj_")
            renamed[f"{prefix}.attn.q.{leaf}"], renamed[f"{prefix}.attn.kv.{leaf}"] = value[:dim], value[dim:]
            continue
        part = blocks.get(part, part)
        pointwise = part.startswith("mlp.fc") and leaf == "weight"
        renamed[f"{prefix}.{part}.{leaf}"] = value.flatten(1) if pointwise else value  # 1x1 convolutions -> linear layers
    return renamed
