"""Plain vision transformers: patches of 16 x 16 pixels, global attention, one resolution.

Papers: "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (arXiv 2010.11929) and "Training
data-efficient image transformers & distillation through attention" (DeiT, arXiv 2012.12877).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import Attention
from mmvit.layers.drop import drop_rates
from mmvit.layers.init import init_linear
from mmvit.layers.mlp import FeedForward
from mmvit.layers.position import resize_grid
from mmvit.layers.transformer import PatchEmbed, PreNormBlock
from mmvit.registry import MODELS

from .base import Backbone, freeze

EPS = 1e-6
PATCH = 16


class PlainTransformer(Backbone):
    """Patch embedding, learnt positions and a row of blocks of one resolution: what plain vision transformers share.

    The table ``pos_embed`` (1, slots + side * side, C) starts with `slots` entries that belong to no patch; the others are
    bicubically resized to the map.

    Args:
        make_block: makes a block from its number and its stochastic depth.
        dim, depth: channels and number of blocks; four stages share the blocks equally.
        slots: entries of the table before those of the patches.
        pretrain_size: side of the images whose maps the table has the size of.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
    """

    strides = (PATCH,) * 4
    #: Whether the resizing of positions smooths where the map is smaller than the table.
    antialias: ClassVar[bool] = False

    def __init__(
        self,
        make_block: Callable[[int, float], nn.Module],
        *,
        dim: int,
        depth: int,
        slots: int,
        pretrain_size: int,
        drop_path_rate: float,
        out_indices: Sequence[int],
        with_cp: bool,
    ):
        super().__init__(out_indices, with_cp)
        self._set_features([dim] * 4, self.strides)
        self.num_layers = depth
        self.slots = slots
        side = pretrain_size // PATCH
        self.patch_embed = PatchEmbed(3, dim, PATCH, PATCH, 0, nn.Identity())
        self.pos_embed = nn.Parameter(torch.empty(1, slots + side * side, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(make_block(i, rate) for i, rate in enumerate(drop_rates(drop_path_rate, (depth,))[0]))
        self.apply(init_linear)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        """The blocks of stage 0 to 3."""
        return self.blocks[stage * self.num_layers // 4 : (stage + 1) * self.num_layers // 4]

    def _freeze(self, stages: int) -> None:
        """-1: nothing, 0: the embedding, k: also the first k quarters of the blocks."""
        if stages >= 0:
            freeze(self.patch_embed, *(self.stage_blocks(i) for i in range(stages)))
            self.pos_embed.requires_grad_(False)

    def embed(self, x: Tensor) -> Tensor:
        """Images -> patches with their positions, (N, h, w, C); images are filled up to whole patches with zeros."""
        height, width = x.shape[-2:]
        if height % PATCH or width % PATCH:
            x = F.pad(x, (0, -width % PATCH, 0, -height % PATCH))
        x = self.patch_embed(x)
        return x + self._resized(self.pos_embed[:, self.slots :], x.shape[1], x.shape[2])

    def run_quarters(self, x: Tensor) -> list[Tensor]:
        """The results of the chosen quarters of the blocks."""
        outputs = []
        for stage in range(max(self.out_indices) + 1):
            for block in self.stage_blocks(stage):
                x = self.run_stage(block, x)
            if stage in self.out_indices:
                outputs.append(x)
        return outputs

    def _resized(self, table: Tensor, height: int, width: int) -> Tensor:
        """(1, side * side, C) -> (1, height, width, C)."""
        side = round(table.shape[1] ** 0.5)
        return resize_grid(table.unflatten(1, (side, side)), height, width, "bicubic", self.antialias)

    def layer_depth(self, name: str) -> int:
        """Embedding, position table and extra tokens 0, then one step per block."""
        kind, _, rest = name.partition(".")
        if kind == "blocks":
            return 1 + int(rest.split(".")[0])
        return 0 if kind in ("patch_embed", "pos_embed", "cls_token", "dist_token") else self.num_layers + 1

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name in ("pos_embed", "cls_token", "dist_token")}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Position tables of other square maps are resized; entries before those of the patches go where there are too many."""
        if name != "pos_embed" or value.shape[-1] != own.shape[-1]:
            return value
        side, own_side = (int(table.shape[1] ** 0.5) for table in (value, own))
        extra, grid = value[:, : -side * side], value[:, -side * side :]
        if extra.shape[1] < self.slots:
            return value
        return torch.cat([extra[:, : self.slots], self._resized(grid, own_side, own_side).flatten(1, 2)], 1)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of timm and of DeiT's and MAE's repositories -> ours; what only a classifier has goes."""
        dropped = ("norm.", "fc_norm.", "head.", "head_dist.", "pre_logits.", "mask_token", "decoder")
        return {key: value for key, value in state_dict.items() if not key.startswith(dropped)}


@MODELS.register_module()
class ViT(PlainTransformer):
    """ViT and DeiT. (N, 3, H, W) -> the patches after each quarter of the blocks, stride 16, without norm; sides round up.

    Recipes that ask for other strides get a pyramid from the last map (`create_backbone(name, out_strides=...)`). Position
    tables are resized to other maps than the pretraining's with antialiasing, as timm does.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim, depth, num_heads: channels, blocks and attention heads.
        distilled: a distillation token stands behind the class token.
        pretrain_size: side of the images whose maps the position table has the size of.
        mlp_ratio: hidden channels of the MLPs over `dim`.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The variants have DeiT's.
        frozen_stages: -1 trains all, 0 freezes the embedding and the tokens, k also the first k quarters of the blocks.
        out_indices: quarters to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "vit"
    arxiv = "2010.11929"
    antialias = True
    variants = {
        "deit_tiny": dict(dim=192, depth=12, num_heads=3),
        "deit_tiny_distilled": dict(dim=192, depth=12, num_heads=3, distilled=True),
        "deit_small": dict(dim=384, depth=12, num_heads=6),
        "deit_small_distilled": dict(dim=384, depth=12, num_heads=6, distilled=True),
        "deit_base": dict(dim=768, depth=12, num_heads=12),
        "deit_base_distilled": dict(dim=768, depth=12, num_heads=12, distilled=True),
        "deit_base_384": dict(dim=768, depth=12, num_heads=12, pretrain_size=384),
        "deit_base_distilled_384": dict(dim=768, depth=12, num_heads=12, pretrain_size=384, distilled=True),
        "large_patch16": dict(dim=1024, depth=24, num_heads=16),
        "debug": dict(dim=16, depth=8, num_heads=2, pretrain_size=80, mlp_ratio=2.0),
        "distilled_debug": dict(dim=16, depth=4, num_heads=2, pretrain_size=80, mlp_ratio=2.0, distilled=True),
    }

    def __init__(
        self,
        arch: str = "deit_small",
        *,
        dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        distilled: bool | None = None,
        pretrain_size: int | None = None,
        mlp_ratio: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        given = dict(dim=dim, depth=depth, num_heads=num_heads, distilled=distilled, pretrain_size=pretrain_size)
        s = dict(distilled=False, pretrain_size=224, mlp_ratio=4.0, drop_path_rate=0.1)
        s |= self.settings(arch, {**given, "mlp_ratio": mlp_ratio, "drop_path_rate": drop_path_rate})
        dim, hidden_dim, tokens = s["dim"], int(s["dim"] * s["mlp_ratio"]), 1 + s["distilled"]

        def make_block(number: int, rate: float) -> nn.Module:
            attention, mlp = Attention(dim, s["num_heads"]), FeedForward(dim, hidden_dim)
            return PreNormBlock(nn.LayerNorm(dim, eps=EPS), attention, nn.LayerNorm(dim, eps=EPS), mlp, rate)

        super().__init__(
            make_block,
            dim=dim,
            depth=s["depth"],
            slots=tokens,
            pretrain_size=s["pretrain_size"],
            drop_path_rate=s["drop_path_rate"],
            out_indices=out_indices,
            with_cp=with_cp,
        )
        for name in ("cls_token", "dist_token")[:tokens]:
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02)))
        self._freeze(frozen_stages)

    def _freeze(self, stages: int) -> None:
        super()._freeze(stages)
        for token in self.extra_tokens() if stages >= 0 else ():
            token.requires_grad_(False)

    def extra_tokens(self) -> list[nn.Parameter]:
        """The class token and the distillation token, if any: (1, 1, C) each."""
        return [self.get_parameter(name) for name in ("cls_token", "dist_token")[: self.slots]]

    def tokens(self, x: Tensor) -> list[Tensor]:
        """Images -> the tokens at the ends of the chosen quarters, (N, slots + h * w, C), extra tokens first."""
        x = self.embed(x).flatten(1, 2)
        extra = torch.cat(self.extra_tokens(), 1) + self.pos_embed[:, : self.slots]
        return self.run_quarters(torch.cat([extra.expand(len(x), -1, -1), x], 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        size = [-(-side // PATCH) for side in x.shape[-2:]]
        return tuple(tokens[:, self.slots :].transpose(1, 2).unflatten(2, size) for tokens in self.tokens(x))
