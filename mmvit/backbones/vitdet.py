"""ViTDet's plain backbone: a vision transformer with windows in most blocks and relative positions.

Paper: "Exploring Plain Vision Transformer Backbones for Object Detection" (arXiv 2203.16527).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import check_heads
from mmvit.layers.mlp import FeedForward
from mmvit.layers.transformer import PreNormBlock
from mmvit.layers.window import pad_to_multiple, tensor_cache, window_partition, window_reverse
from mmvit.registry import MODELS

from .vit import EPS, PATCH, PlainTransformer


@tensor_cache(maxsize=32)
def offset_index(side: int, device: torch.device) -> Tensor:
    """Row of a table of 2 * side - 1 relative positions for each query and key along a side: (side, side)."""
    position = torch.arange(side, device=device)
    return position[:, None] - position[None] + side - 1


def relative_rows(table: Tensor, side: int) -> Tensor:
    """The entries of `table` (L, d) for queries and keys along a side, (side, side, d); linearly resized to 2 * side - 1."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.t()[None], 2 * side - 1, mode="linear")[0].t()
    return table[offset_index(side, table.device)]


class RelativeAttention(nn.Module):
    """Attention with decomposed relative positions, in windows or over the whole map. (B, H, W, C) -> (B, H, W, C).

    The logit of a query at (y, x) and a key at (y2, x2) is ``q.k / sqrt(d) + q.Th[y - y2] + q.Tw[x - x2]``. The two last
    terms are taken into the scalar product as H + W further channels: q.Th and q.Tw for every row and column of the map, and
    for the key the unit vectors of its row and column. So no (H * W)^2 bias is ever stored.

    Maps are padded to whole windows with zeros, which take part as keys (with the bias of ``qkv``).

    Args:
        dim, num_heads: channels and attention heads.
        window: side of the windows, None for the whole map.
        side: of the maps for which the tables are made; they are resized to others.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None, side: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        rows = 2 * (window or side) - 1
        self.rel_pos_h = nn.Parameter(torch.zeros(rows, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(rows, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        if self.window is None:
            return self.attend(x)
        height, width = x.shape[1:3]
        size = self.window, self.window
        x = pad_to_multiple(x, size)
        grid = x.shape[1:3]
        windows = window_partition(x, size).unflatten(1, size)
        return window_reverse(self.attend(windows).flatten(1, 2), size, *grid)[:, :height, :width]

    def attend(self, x: Tensor) -> Tensor:
        """Attention over whole maps (B, h, w, C)."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)  # (B, heads, h, w, d)
        by_row = torch.einsum("bnhwd,hkd->bnhwk", query, relative_rows(self.rel_pos_h, height).to(query.dtype))
        by_column = torch.einsum("bnhwd,wkd->bnhwk", query, relative_rows(self.rel_pos_w, width).to(query.dtype))
        query = torch.cat([query * query.shape[-1] ** -0.5, by_row, by_column], -1)
        row, column = (torch.eye(side, device=x.device, dtype=key.dtype) for side in (height, width))
        shape = batch, self.num_heads, height, width, -1
        key = torch.cat([key, row[:, None].expand(*shape[:4], -1), column[None].expand(*shape[:4], -1)], -1)
        out = F.scaled_dot_product_attention(query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3), scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, dim))


@MODELS.register_module()
class ViTDet(PlainTransformer):
    """ViTDet. (N, 3, H, W) -> the maps after each quarter of the blocks, stride 16, without norm; sides round up.

    The last block of each quarter attends to the whole map, the others within windows. Recipes that ask for other strides
    get the paper's simple pyramid from the last map (`create_backbone(name, out_strides=...)`). Position tables are resized
    without antialiasing, relative positions linearly, as the paper's code does.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim, depth, num_heads: channels, blocks and attention heads.
        window: side of the windows.
        image_size: side of the images whose maps the relative positions of global blocks have the size of.
        pretrain_size: the same for the position table.
        mlp_ratio: hidden channels of the MLPs over `dim`.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        frozen_stages: -1 trains all, 0 freezes the embedding, k also the first k quarters of the blocks.
        out_indices: quarters to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "vitdet"
    arxiv = "2203.16527"
    variants = {
        "b": dict(dim=768, depth=12, num_heads=12, drop_path_rate=0.1),
        "l": dict(dim=1024, depth=24, num_heads=16, drop_path_rate=0.4),
        "h": dict(dim=1280, depth=32, num_heads=16, drop_path_rate=0.5),
        "debug": dict(
            dim=16, depth=8, num_heads=2, window=3, image_size=80, pretrain_size=80, mlp_ratio=2.0, drop_path_rate=0.1
        ),
    }

    def __init__(
        self,
        arch: str = "b",
        *,
        dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        window: int | None = None,
        image_size: int | None = None,
        pretrain_size: int | None = None,
        mlp_ratio: float | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        given = dict(dim=dim, depth=depth, num_heads=num_heads, window=window, image_size=image_size)
        given |= dict(pretrain_size=pretrain_size, mlp_ratio=mlp_ratio, drop_path_rate=drop_path_rate)
        s = dict(window=14, image_size=1024, pretrain_size=224, mlp_ratio=4.0) | self.settings(arch, given)
        dim = s["dim"]

        def make_block(number: int, rate: float) -> nn.Module:
            is_global = (number + 1) % (s["depth"] // 4) == 0
            attention = RelativeAttention(dim, s["num_heads"], None if is_global else s["window"], -(-s["image_size"] // PATCH))
            mlp = FeedForward(dim, int(dim * s["mlp_ratio"]))
            return PreNormBlock(nn.LayerNorm(dim, eps=EPS), attention, nn.LayerNorm(dim, eps=EPS), mlp, rate)

        super().__init__(
            make_block,
            dim=dim,
            depth=s["depth"],
            slots=0,
            pretrain_size=s["pretrain_size"],
            drop_path_rate=s["drop_path_rate"],
            out_indices=out_indices,
            with_cp=with_cp,
        )
        self._freeze(frozen_stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.permute(0, 3, 1, 2) for x in self.run_quarters(self.embed(x)))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def dense_only(self) -> set[str]:
        """The relative positions, which pretraining does not have."""
        return {name for name in self.state_dict() if name.endswith((".rel_pos_h", ".rel_pos_w"))}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        if name.endswith((".rel_pos_h", ".rel_pos_w")) and value.shape[1:] == own.shape[1:]:
            return F.interpolate(value.t()[None], len(own), mode="linear")[0].t()
        return super().fit_table(name, value, own)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository (``net.blocks...``) or of MAE's -> ours; its pyramid and the class token go."""
        state = {key.removeprefix("backbone.").removeprefix("net."): value for key, value in state_dict.items()}
        return {k: v for k, v in super().convert(state).items() if k != "cls_token" and not k.startswith("simfp_")}
