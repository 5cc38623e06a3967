"""Axial attention with learnt relative positions (Axial-DeepLab, arXiv 2003.07853), as kMaX-DeepLab uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REACH = 254  # largest distance of the position tables
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01  # of all batch norms of kMaX-DeepLab


class AxialAttention(nn.Module):
    """Attention along one axis, with relative positions for queries, keys and values; no scaling, batch-normed logits.

    (N, C, L) -> (N, C, L), any L up to 255. Key depth C / 2, value depth C.
    """

    def __init__(self, dim: int, num_heads: int = 8):
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = num_heads, dim // 2 // num_heads, dim // num_heads
        self.qkv = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.qkv_norm = nn.BatchNorm1d(2 * dim)
        rows = 2 * REACH + 1
        self.query_positions = nn.Embedding(rows, self.key_dim)
        self.key_positions = nn.Embedding(rows, self.key_dim)
        self.value_positions = nn.Embedding(rows, self.value_dim)
        self.similarity_norm = nn.BatchNorm2d(3 * num_heads)
        self.output_norm = nn.BatchNorm1d(2 * dim)
        nn.init.normal_(self.qkv.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        heads, length = self.num_heads, x.shape[-1]
        qkv = self.qkv_norm(self.qkv(x))
        depths = [heads * d for d in (self.key_dim, self.key_dim, self.value_dim)]
        q, k, v = (part.unflatten(1, (heads, -1)) for part in qkv.split(depths, 1))  # (N, heads, d, L)
        step = torch.arange(length, device=x.device)
        index = step - step[:, None] + REACH  # (query, key)
        similarity = torch.cat(
            [
                q.transpose(-1, -2) @ k,
                torch.einsum("nhdl,lmd->nhlm", q, self.query_positions(index)),
                torch.einsum("nhdm,lmd->nhlm", k, self.key_positions(index)),
            ],
            1,
        )
        weights = self.similarity_norm(similarity).unflatten(1, (3, heads)).sum(1).softmax(-1)
        content = v @ weights.transpose(-1, -2)  # (N, heads, d, L)
        positions = torch.einsum("nhlm,lmd->nhdl", weights, self.value_positions(index))
        found = self.output_norm(torch.cat([content.flatten(1, 2), positions.flatten(1, 2)], 1))
        return found.unflatten(1, (2, -1)).sum(1)


class AxialAttention2d(nn.Module):
    """Attention along the columns, then along the rows. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, num_heads: int = 8):
        super().__init__()
        self.height, self.width = AxialAttention(dim, num_heads), AxialAttention(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        x = self.height(x.permute(0, 3, 1, 2).flatten(0, 1)).unflatten(0, (batch, -1))  # (B, W, C, H)
        x = self.width(x.permute(0, 3, 2, 1).flatten(0, 1)).unflatten(0, (batch, -1))  # (B, H, C, W)
        return x.permute(0, 2, 1, 3)
