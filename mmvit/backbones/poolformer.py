"""MetaFormer and PoolFormer: four-stage pyramids whose blocks mix pixels by as little as an average of neighbours.

Paper: "MetaFormer Is Actually What You Need for Vision" (arXiv 2111.11418).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import Attention
from mmvit.layers.drop import drop_rates
from mmvit.layers.mlp import FeedForward2d
from mmvit.layers.norm import LayerNorm2d
from mmvit.layers.resize import resize
from mmvit.layers.scale import LayerScale2d
from mmvit.layers.transformer import PreNormBlock
from mmvit.registry import MODELS

from .base import freeze
from .staged import StagedBackbone

HEAD_DIM = 32


class Pooling(nn.Module):
    """The mean of a pixel's 3x3 neighbourhood inside the map, minus the pixel (equation 4). (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class MapAttention(Attention):
    """`Attention` of all pixels of a map. (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = super().forward(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class SpatialFC(nn.Module):
    """A linear layer over all pixels of a map, the same for each channel. (N, C, H, W) -> (N, C, H, W).

    Its weights belong to maps of `side` x `side` pixels. A map of another size is averaged to that size, and the result
    bilinearly resized back; the paper's network takes no other size.
    """

    def __init__(self, side: int):
        super().__init__()
        self.grid = (side, side)
        self.fc = nn.Linear(side * side, side * side, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        cells = x if x.shape[2:] == self.grid else F.adaptive_avg_pool2d(x, self.grid)
        return resize(self.fc(cells.flatten(2)).unflatten(2, self.grid), x.shape[2:])


class MapPyramid(StagedBackbone):
    """Four stages of blocks on maps, with a layer that halves the map between them. (N, 3, H, W) -> maps of stride 4 to 32.

    A subclass's constructor gives the parts to `_assemble`.
    """

    def _assemble(
        self,
        dims: Sequence[int],
        patch_embed: nn.Module,
        downsamples: Sequence[nn.Module],
        stages: Sequence[Sequence[nn.Module]],
        output_norm: Callable[[int], nn.Module] | None,
    ) -> None:
        """Take the parts; `output_norm` makes the norm of an output from its number of channels, None: outputs have none."""
        self.patch_embed = patch_embed
        self.downsamples = nn.ModuleList(downsamples)
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self._set_features(dims, self.strides)
        self._add_norms(dims, output_norm or nn.Identity)
        self._set_depths([len(blocks) for blocks in self.stages])

    def _freeze(self, stages: int) -> None:
        freeze(self.patch_embed, *self.stages[:stages], *self.downsamples[: max(stages - 1, 0)])

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self.run_stage(self.downsamples[stage - 1], x) if stage else self.patch_embed(x)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        return self.stages[stage]

    def layer_depth(self, name: str) -> int:
        """Stem 0, then one step per block; a downsampling layer goes with the block after it."""
        kind, *rest = name.split(".")
        if kind == "patch_embed":
            return 0
        if kind.startswith("norm"):
            return self.num_layers + 1
        stage = int(rest[0])
        return self.block_depth(stage, int(rest[1])) if kind == "stages" else self.block_depth(stage + 1)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".gamma")}


@MODELS.register_module()
class MetaFormer(MapPyramid):
    """The paper's ablation of token mixers. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3).

    Sides become floor((H + 1) / 4), then they round up at every halving. Networks with attention normalise the channels of
    each pixel and add a position embedding before the first stage with attention, which is bicubically resized to maps of
    other sizes than those of 224 x 224 images; the others normalise whole maps.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims, depths: channels and blocks of the stages.
        mixers: token mixer of each stage: ``pool``, ``identity``, ``attention`` or ``spatial`` (a linear layer over pixels).
        layer_scale_init: first value of the factors of the residual branches.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages (but no norm of an output).
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "metaformer"
    arxiv = "2111.11418"
    variants = {
        "id_s12": dict(mixers=("identity",) * 4),
        "pppa_s12": dict(mixers=("pool", "pool", "pool", "attention")),
        "ppaa_s12": dict(mixers=("pool", "pool", "attention", "attention")),
        "pppf_s12": dict(mixers=("pool", "pool", "pool", "spatial")),
        "ppff_s12": dict(mixers=("pool", "pool", "spatial", "spatial")),
        "debug": dict(
            dims=(8, 12, 32, 32),
            depths=(1, 2, 1, 1),
            mixers=("identity", "pool", "attention", "spatial"),
            layer_scale_init=0.5,
            drop_path_rate=0.1,
        ),
    }
    aliases = {f"{name}_224": name for name in ("pppa_s12", "ppaa_s12", "pppf_s12", "ppff_s12")}
    #: Side of the images whose maps position embeddings and spatial linear layers have the size of.
    pretrain_size: ClassVar[int] = 224
    #: Whether each output has a norm.
    output_norm: ClassVar[bool] = False

    def __init__(
        self,
        arch: str | None = None,
        *,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        mixers: Sequence[str] | None = None,
        layer_scale_init: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, depths=depths, mixers=mixers)
        given.update(layer_scale_init=layer_scale_init, drop_path_rate=drop_path_rate)
        defaults = dict(dims=(64, 128, 320, 512), depths=(2, 2, 6, 2), mixers=("pool",) * 4)
        defaults.update(layer_scale_init=1e-5, drop_path_rate=0.0)
        s = {**defaults, **self.settings(arch or next(iter(self.variants)), given)}
        dims, self.mixers = s["dims"], tuple(s["mixers"])
        rates = drop_rates(s["drop_path_rate"], s["depths"])
        self._assemble(
            dims,
            nn.Conv2d(3, dims[0], 7, 4, 2),
            [nn.Conv2d(before, dim, 3, 2, 1) for before, dim in zip(dims[:-1], dims[1:])],
            [[self._block(i, dim, s["layer_scale_init"], rate) for rate in rates[i]] for i, dim in enumerate(dims)],
            self.make_norm if self.output_norm else None,
        )
        self.position_stage = self.mixers.index("attention") if "attention" in self.mixers else None
        if self.position_stage is not None:
            side = self.pretrain_size // self.strides[self.position_stage]
            self.pos_embed = nn.Parameter(torch.zeros(1, dims[self.position_stage], side, side))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(self._initialise)
        if frozen_stages >= 0:
            self._freeze(frozen_stages)

    def make_norm(self, dim: int) -> nn.Module:
        """A norm over (N, dim, H, W)."""
        return LayerNorm2d(dim) if "attention" in self.mixers else nn.GroupNorm(1, dim)

    def _block(self, stage: int, dim: int, layer_scale_init: float, drop_path: float) -> PreNormBlock:
        return PreNormBlock(
            self.make_norm(dim),
            self._mixer(stage, dim),
            self.make_norm(dim),
            FeedForward2d(dim, 4 * dim),
            drop_path,
            LayerScale2d(dim, layer_scale_init),
            LayerScale2d(dim, layer_scale_init),
        )

    def _mixer(self, stage: int, dim: int) -> nn.Module:
        makers = {
            "pool": Pooling,
            "identity": nn.Identity,
            "attention": lambda: MapAttention(dim, dim // HEAD_DIM, qkv_bias=False),
            "spatial": lambda: SpatialFC(self.pretrain_size // self.strides[stage]),
        }
        return makers[self.mixers[stage]]()

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """Weights of MLPs and linear layers N(0, 0.02) truncated, biases 0; other convolutions as PyTorch makes them."""
        layers = (module.fc1, module.fc2) if isinstance(module, FeedForward2d) else (module,)
        for layer in layers if isinstance(module, (FeedForward2d, nn.Linear)) else ():
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _freeze(self, stages: int) -> None:
        super()._freeze(stages)
        if self.position_stage is not None and self.position_stage < stages:
            self.pos_embed.requires_grad_(False)

    @classmethod
    def map_side(cls, side: int, stride: int) -> int:
        return -(-((side + 1) // 4) // (stride // 4))

    def enter(self, stage: int, x: Tensor) -> Tensor:
        x = super().enter(stage, x)
        return x + resize(self.pos_embed, x.shape[2:], "bicubic") if stage == self.position_stage else x

    def layer_depth(self, name: str) -> int:
        """As `MapPyramid.layer_depth`; the position embedding goes with the block after it."""
        return super().layer_depth(f"stages.{self.position_stage}.0" if name == "pos_embed" else name)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name == "pos_embed"}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Position embeddings of another grid are resized bicubically."""
        return resize(value, own.shape[2:], "bicubic") if name == "pos_embed" and value.shape[:2] == own.shape[:2] else value

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository -> ours; what only a classifier has goes."""
        renamed = {}
        for key, value in state_dict.items():
            if key.startswith(("norm.", "head.")):
                continue
            if key.startswith("network."):
                _, index, rest = key.split(".", 2)
                shift = any(f"network.{i}.pos_embed" in state_dict for i in range(int(index)))  # it has an index of its own
                key = _entry_name(int(index) - shift, rest)
            key = re.sub(r"^norm(\d)\.", lambda m: f"norm{int(m[1]) // 2}.", key)
            renamed[key.replace("patch_embed.proj.", "patch_embed.")] = value
        return renamed


def _entry_name(index: int, rest: str) -> str:
    """Our name of ``network.{index}.{rest}``: the stages, with the downsampling layers between them."""
    if rest == "pos_embed":
        return rest
    if index % 2:
        return f"downsamples.{index // 2}.{rest.removeprefix('proj.')}"
    rest = re.sub(r"layer_scale_(\d)$", r"scale\1.gamma", rest.replace(".token_mixer.", ".attn."))
    return f"stages.{index // 2}.{rest}"


@MODELS.register_module()
class PoolFormer(MetaFormer):
    """PoolFormer: pooling in all stages, and a norm of the whole map for each output. Sides as in `MetaFormer`."""

    family = "poolformer"
    output_norm = True
    variants = {
        "s12": dict(depths=(2, 2, 6, 2)),
        "s24": dict(depths=(4, 4, 12, 4)),
        "s36": dict(depths=(6, 6, 18, 6), layer_scale_init=1e-6),
        "m36": dict(depths=(6, 6, 18, 6), dims=(96, 192, 384, 768), layer_scale_init=1e-6),
        "m48": dict(depths=(8, 8, 24, 8), dims=(96, 192, 384, 768), layer_scale_init=1e-6),
        "debug": dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 24), layer_scale_init=0.5, drop_path_rate=0.1),
    }
    aliases = {}
