"""Attention blocks shared by encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError


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


def check_heads(dim: int, num_heads: int) -> None:
    """UserError where `num_heads` heads cannot share `dim` channels."""
    if dim % num_heads:
        raise UserError(f"{num_heads} attention heads cannot share {dim} channels: give a width that is a multiple of them.")


class Attention(nn.Module):
    """Multi-head self-attention of tokens, as vision transformers have it. (B, T, C) -> (B, T, C).

    Rows of ``qkv``: query, key, value, each head by head.

    Args:
        dim: channels C.
        num_heads: attention heads; divides `dim`.
        qkv_bias, proj_bias: whether the linear layers have biases.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, proj_bias: bool = True):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)  # (B, heads, T, C / heads)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class SpatialReductionAttention(nn.Module):
    """Multi-head attention of every pixel to a reduced map of keys and values. (N, h, w, C) -> (N, h, w, C).

    Sources: PVT (arXiv 2102.12122): a convolution whose kernel and stride are `reduction`, flooring, then a norm; SegFormer
    (arXiv 2105.15203) has the same. PVT v2 (arXiv 2106.13797), `pooled`: average pooling to 7x7, 1x1 convolution, norm, GELU.

    Args:
        dim: channels C.
        num_heads: attention heads; divides `dim`.
        reduction: factor by which the sides of the key and value map shrink; 1 leaves it (no convolution, no norm).
        norm: makes the norm of the reduced map from its number of channels.
        pooled: keys and values come from a 7x7 map, at a cost linear in the number of pixels; `reduction` is not used.
    """

    pool_size = 7

    def __init__(self, dim: int, num_heads: int, reduction: int, norm: Callable[[int], nn.Module], pooled: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.pooled = num_heads, pooled
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        kernel = 1 if pooled else reduction
        self.sr = nn.Conv2d(dim, dim, kernel, kernel) if pooled or reduction > 1 else None
        self.norm = norm(dim) if self.sr is not None else None

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        query = self.q(x).view(batch, height * width, self.num_heads, -1).transpose(1, 2)  # (N, heads, h*w, C/heads)
        source = self.reduce(x)
        key, value = self.kv(source).view(batch, source.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, dim))

    def reduce(self, x: Tensor) -> Tensor:
        """The tokens (N, M, C) that keys and values are made of."""
        if self.sr is None:
            return x.flatten(1, 2)
        maps = x.permute(0, 3, 1, 2)
        if self.pooled:
            maps = F.adaptive_avg_pool2d(maps, self.pool_size)
        else:  # zeros fill up a map that is smaller than the kernel
            (kernel, _), (height, width) = self.sr.kernel_size, maps.shape[-2:]
            maps = F.pad(maps, (0, max(0, kernel - width), 0, max(0, kernel - height)))
        tokens = self.norm(self.sr(maps).permute(0, 2, 3, 1).flatten(1, 2))
        return F.gelu(tokens) if self.pooled else tokens
