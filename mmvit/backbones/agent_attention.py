"""Agent-Swin and Agent-PVT: Swin and PVT with agent attention over the whole map in place of (some of) their own attention.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention" (arXiv 2312.08874).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import check_heads
from mmvit.layers.position import resize_grid
from mmvit.layers.resize import resize
from mmvit.registry import MODELS

from .base import Backbone
from .pvt import PVT
from .swin import Swin

#: Sides of the agent grids that the bias tables of the four stages are made for.
TABLE_GRIDS = (3, 4, 7, 7)
#: Sides of the part of the bias tables that is not factorised.
COARSE = 7
TABLES = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias")


def resize_agents(table: Tensor, grid: int) -> Tensor:
    """Resize the agents' grid bilinearly: (heads, p * p, positions) -> (heads, grid * grid, positions)."""
    side = round(table.shape[1] ** 0.5)
    agents = table.transpose(1, 2).unflatten(-1, (side, side))  # (heads, positions, p, p)
    return resize(agents, (grid, grid)).flatten(2).transpose(1, 2)


def resize_line(table: Tensor, length: int) -> Tensor:
    """Resize positions on a line linearly: (heads, agents, L) -> (heads, agents, length)."""
    return table if table.shape[-1] == length else F.interpolate(table, length, mode="linear", align_corners=False)


class AgentAttention(nn.Module):
    """Pooled queries, the agents, attend to all pixels, and all pixels to the agents. (N, h, w, C) -> (N, h, w, C).

    Both attentions have biases of agents and pixels (section 3.3 of the paper), and a depthwise convolution of the values is
    added. Each bias is the sum of a table of 7 x 7 pixels and of one table for rows and one for columns; all are
    bilinearly resized to the map and to the agents' grid, so that the cost is linear in the number of pixels at any size.

    Args:
        dim, num_heads: channels C and attention heads.
        grid: side of the agents' grid.
        table_grid: side of the agents' grid in the tables.
        side: length of the tables of rows and columns.
    """

    def __init__(self, dim: int, num_heads: int, grid: int, table_grid: int, side: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.grid = num_heads, grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        agents = table_grid**2
        shapes = (  # of TABLES
            (num_heads, agents, COARSE, COARSE),
            (num_heads, agents, COARSE, COARSE),
            (1, num_heads, agents, side, 1),
            (1, num_heads, agents, 1, side),
            (1, num_heads, side, 1, agents),
            (1, num_heads, 1, side, agents),
        )
        for name, shape in zip(TABLES, shapes, strict=True):
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    def agent_bias(self, height: int, width: int) -> Tensor:
        """Biases of the agents' attention to pixels, (heads, agents, h * w)."""
        return self.bias(self.an_bias, self.ah_bias[0, ..., 0], self.aw_bias[0, :, :, 0], height, width)

    def query_bias(self, height: int, width: int) -> Tensor:
        """Biases of the pixels' attention to agents, (heads, h * w, agents)."""
        rows, columns = self.ha_bias[0, :, :, 0].transpose(1, 2), self.wa_bias[0, :, 0].transpose(1, 2)
        return self.bias(self.na_bias, rows, columns, height, width).transpose(1, 2).contiguous()  # fused attention needs that

    def bias(self, coarse: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        """Tables (heads, p * p, 7, 7), (heads, p * p, L), (heads, p * p, L) -> (heads, agents, h * w)."""
        coarse = resize_agents(coarse.flatten(2), self.grid).unflatten(-1, (COARSE, COARSE))
        rows = resize_line(resize_agents(rows, self.grid), height)
        columns = resize_line(resize_agents(columns, self.grid), width)
        return (resize(coarse, (height, width)) + rows[..., None] + columns[..., None, :]).flatten(2)

    def heads(self, tokens: Tensor) -> Tensor:
        """(N, ..., C) -> (N, heads, T, C / heads)."""
        return tokens.flatten(1, -2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        query, key, value = self.qkv(x).chunk(3, -1)
        agents = F.adaptive_avg_pool2d(query.permute(0, 3, 1, 2), self.grid).permute(0, 2, 3, 1)
        local = self.dwc(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        query, key, value, agents = map(self.heads, (query, key, value, agents))
        to_pixels, to_agents = (bias(*size).to(query.dtype)[None] for bias in (self.agent_bias, self.query_bias))
        gathered = F.scaled_dot_product_attention(agents, key, value, attn_mask=to_pixels)  # (N, heads, agents, d)
        out = F.scaled_dot_product_attention(query, agents, gathered, attn_mask=to_agents)
        return self.proj(out.transpose(1, 2).reshape(x.shape) + local)


class AgentBackbone(Backbone):
    """Settings of a network with agent attention.

    Args:
        agent_grids: side of the agents' grid in each stage. It may be any; the papers' classifiers have 3, 4, 7, 7.
        pretrain_size: side of the images whose maps the bias tables fit; they are resized to other maps.
        settings: those of the network with its own attention.
    """

    #: What a variant need not say.
    defaults: ClassVar[dict[str, object]]

    def __init__(
        self,
        arch: str = "t",
        *,
        agent_grids: Sequence[int] | None = None,
        pretrain_size: int | None = None,
        **settings,
    ):
        s = {**self.defaults, **self.settings(arch, dict(agent_grids=agent_grids, pretrain_size=pretrain_size))}
        # plain values, which `make_attention` reads while the network is built
        self.agent_grids, self.pretrain_size = tuple(s["agent_grids"]), s["pretrain_size"]
        super().__init__(arch, **settings)

    def agent_attention(self, stage: int, dim: int, num_heads: int) -> AgentAttention:
        """The attention of a block of stage 0 to 3."""
        side = self.pretrain_size // self.strides[stage]
        return AgentAttention(dim, num_heads, self.agent_grids[stage], TABLE_GRIDS[stage], side)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(TABLES)}

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Tables of rows and columns of another size are resized linearly."""
        axis = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}.get(name.rpartition(".")[2])
        if axis is None:
            return super().fit_table(name, value, own)
        line = value.movedim(axis, -1)
        resized = resize_line(line.flatten(0, 1).flatten(1, -2), own.shape[axis])
        return resized.view(*line.shape[:-1], -1).movedim(-1, axis)


@MODELS.register_module()
class AgentSwin(AgentBackbone, Swin):
    """Swin with `AgentAttention` in the first blocks of its stages.

    The other blocks keep Swin's windows, whose side is a 32nd of `pretrain_size`, but at least 7, unless `window` says
    otherwise. The variants have UPerNet's rates of stochastic depth (detectors: 0.1, "b" 0.4).

    Args:
        agent_blocks: how many blocks of each stage have agent attention.
    """

    family = "agent_swin"
    arxiv = "2312.08874"
    defaults = dict(agent_grids=(9, 12, 14, 7), pretrain_size=224)
    variants = {
        "t": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), agent_blocks=(2, 2, 6, 0), drop_path_rate=0.3),
        "s": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), agent_blocks=(2, 2, 0, 0), drop_path_rate=0.3),
        "b": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), agent_blocks=(2, 2, 2, 0), drop_path_rate=0.5),
        "debug": dict(
            dim=8,
            depths=(2, 1, 3, 1),
            num_heads=(1, 2, 2, 4),
            agent_blocks=(2, 1, 1, 0),
            agent_grids=(4, 4, 3, 3),
            pretrain_size=64,
            window=4,
            mlp_ratio=2.0,
            drop_path_rate=0.1,
        ),
    }

    def __init__(
        self,
        arch: str = "t",
        *,
        agent_blocks: Sequence[int] | None = None,
        pretrain_size: int | None = None,
        window: int | None = None,
        **settings,
    ):
        given = dict(agent_blocks=agent_blocks, pretrain_size=pretrain_size, window=window)
        s = {**self.defaults, **self.settings(arch, given)}
        self.agent_blocks = tuple(s["agent_blocks"])
        window = s.get("window", max(7, s["pretrain_size"] // 32))
        super().__init__(arch, pretrain_size=pretrain_size, window=window, **settings)

    def make_block_attention(self, stage: int, block: int, dim: int, num_heads: int, window: int) -> nn.Module:
        if block < self.agent_blocks[stage]:
            return self.agent_attention(stage, dim, num_heads)
        return super().make_block_attention(stage, block, dim, num_heads, window)


@MODELS.register_module()
class AgentPVT(AgentBackbone, PVT):
    """PVT (v1) with `AgentAttention` in all blocks: keys and values are not reduced."""

    family = "agent_pvt"
    arxiv = "2312.08874"
    class_slot = False
    defaults = dict(agent_grids=(12, 16, 28, 28), pretrain_size=224)
    variants = {
        "t": {**PVT.variants["tiny"], "drop_path_rate": 0.1},
        "s": {**PVT.variants["small"], "drop_path_rate": 0.1},
        "m": {**PVT.variants["medium"], "drop_path_rate": 0.2},
        "l": {**PVT.variants["large"], "drop_path_rate": 0.1},
        "debug": dict(
            dims=(8, 16, 20, 32),
            depths=(1, 2, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2, 2, 2, 2),
            agent_grids=(4, 4, 3, 3),
            pretrain_size=64,
        ),
    }

    def make_attention(self, stage: int, dim: int, num_heads: int, reduction: int) -> nn.Module:
        return self.agent_attention(stage, dim, num_heads)

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Position embeddings of another size are resized, too."""
        if name.startswith("pos_embed") and value.shape[-1] == own.shape[-1]:
            old, new = (round(t.shape[1] ** 0.5) for t in (value, own))
            return resize_grid(value.unflatten(1, (old, old)), new, new).flatten(1, 2)
        return super().fit_table(name, value, own)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """As for PVT; the separate layers of queries, and of keys and values, become one."""
        state_dict = super().convert(state_dict)
        joined = {}
        for key, value in state_dict.items():
            if match := re.fullmatch(r"(.*\.attn)\.(q|kv)\.(\w+)", key):
                prefix, _, part = match.groups()
                joined[f"{prefix}.qkv.{part}"] = torch.cat([state_dict[f"{prefix}.{layer}.{part}"] for layer in ("q", "kv")])
            else:
                joined[key] = value
        return joined
