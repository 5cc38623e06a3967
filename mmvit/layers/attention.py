"""Attention blocks shared by encoders and decoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention whose position embedding enters queries and keys only.

    Parameters are named and packed as in `nn.MultiheadAttention` (rows of ``in_proj_weight``: query, key, value).
    Shapes: x, pos (B, T, C), mask (T, T) bool with True = may not attend -> (B, T, C).
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, dim = x.shape
        query_key = F.linear(x + pos, self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim])
        value = F.linear(x, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])
        query, key = query_key.view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, T, C/heads)
        value = value.view(batch, tokens, self.num_heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=None if mask is None else ~mask)
        return self.out_proj(out.transpose(1, 2).reshape(batch, tokens, dim))
