"""Decoders of mask classification: learnt queries become classes and masks.

Papers: Mask2Former (arXiv 2112.01527; masked attention), PEM (arXiv 2402.19422; prototypes).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError, did_you_mean
from mmvit.layers.attention import SelfAttention
from mmvit.layers.mlp import MLP
from mmvit.layers.position import sine_position_2d
from mmvit.registry import MODELS


@dataclass
class MaskPrediction:
    """One layer's prediction: class logits (B, Q, C + 1), the last class is "no object"; mask logits (B, Q, h, w)."""

    logits: Tensor
    masks: Tensor


class MaskedAttention(nn.Module):
    """Cross-attention in which each query sees the pixels of its own predicted mask (Mask2Former, equation 2).

    A query whose mask is empty sees everything. Parameters are named and packed as in `nn.MultiheadAttention`.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, masks: Tensor) -> Tensor:
        """query, query_pos (B, Q, C); memory (B, C, h, w); pos (1, h*w, C); masks: logits (B, Q, h, w) -> (B, Q, C)."""
        dim = query.shape[-1]
        tokens = memory.flatten(2).transpose(1, 2)
        weights = zip(self.in_proj_weight.split(dim), self.in_proj_bias.split(dim))
        q, k, v = (F.linear(x, *w) for x, w in zip((query + query_pos, tokens + pos, tokens), weights))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        seen = masks.flatten(2) >= 0
        seen = seen | ~seen.any(-1, keepdim=True)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _FeatureProjection(nn.Module):
    """Norm, depthwise 3x3 convolution, linear layer: (B, C, h, w) -> (B, h*w, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)
        self.to_query_3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.to_query_3x3(self.bn(x)).flatten(2).transpose(1, 2))


class PrototypeAttention(nn.Module):
    """PEM's cross-attention: each head of a query takes its most similar pixel, the prototype, and is modulated by it.

    Pixels with a negative mask logit are left out, unless that leaves no pixel to any query of the image. Two details follow
    the published networks: a query whose mask is empty takes the first pixel, and the modulated prototypes are normalised over
    the queries.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.feature_proj = _FeatureProjection(dim)
        self.query_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.proj, self.final = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, query: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, masks: Tensor) -> Tensor:
        """Shapes as in `MaskedAttention`."""
        positions = pos.transpose(1, 2).unflatten(2, memory.shape[-2:])
        pixels = F.normalize(self.feature_proj(memory + positions), dim=-1)
        query = F.normalize(self.query_proj(query + query_pos), dim=-1)
        best = self.most_similar(pixels.detach(), query.detach(), masks.flatten(2))  # (B, heads, Q)
        heads = pixels.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        prototypes = heads.gather(2, best[..., None].expand(*best.shape, heads.shape[-1])).transpose(1, 2).flatten(2)
        modulated = F.normalize(self.proj(prototypes * query), dim=1)
        return self.final(modulated * self.alpha + prototypes)

    def most_similar(self, pixels: Tensor, query: Tensor, masks: Tensor) -> Tensor:
        """pixels (B, N, C), query (B, Q, C), masks (B, Q, N) -> position of the most similar pixel (B, heads, Q)."""
        pixels, query = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (pixels, query))
        blocked = masks < 0
        blocked = blocked & ~blocked.flatten(1).all(1)[:, None, None]
        similarity = (query @ pixels.transpose(-1, -2)).masked_fill_(blocked[:, None], float("-inf"))
        return similarity.argmax(-1).masked_fill(blocked.all(-1)[:, None], 0)


ATTENTIONS = {"masked": MaskedAttention, "prototype": PrototypeAttention}


class DecoderLayer(nn.Module):
    """Cross-attention, self-attention, feed-forward, each with a shortcut; norms behind them, or before with `pre_norm`.

    With `pre_norm` the cross-attention (PEM's) normalises its own inputs.
    """

    def __init__(self, dim: int, num_heads: int, feedforward: int, attention: str, pre_norm: bool):
        super().__init__()
        self.pre_norm = pre_norm
        self.cross_attn = ATTENTIONS[attention](dim, num_heads)
        self.cross_norm = nn.Identity() if pre_norm else nn.LayerNorm(dim)
        self.self_attn = SelfAttention(dim, num_heads)
        self.self_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, masks: Tensor) -> Tensor:
        """x, query_pos (B, Q, C); memory (B, C, h, w); pos (1, h*w, C); masks: logits (B, Q, h, w) -> (B, Q, C)."""
        x = self.cross_norm(x + self.cross_attn(x, query_pos, memory, pos, masks))
        if self.pre_norm:
            x = x + self.self_attn(self.self_norm(x), query_pos)
            return x + self.feedforward(self.ffn_norm(x))
        x = self.self_norm(x + self.self_attn(x, query_pos))
        return self.ffn_norm(x + self.feedforward(x))

    def feedforward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))


@MODELS.register_module()
class QueryDecoder(nn.Module):
    """Queries look at the maps in turn (coarse to fine, again and again) and predict a class and a mask after each layer.

    Args:
        in_channels: of the maps.
        mask_dim: channels of the mask features.
        num_classes: without "no object".
        num_queries: queries.
        dim, num_heads, feedforward, num_layers: of the decoder.
        attention: ``masked`` (Mask2Former) or ``prototype`` (PEM).
        pre_norm: norms before self-attention and feed-forward.
        project_inputs: project the maps to `dim` also where they have it (PEM).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        mask_dim: int,
        num_classes: int,
        num_queries: int = 100,
        dim: int = 256,
        num_heads: int = 8,
        feedforward: int = 2048,
        num_layers: int = 9,
        attention: str = "masked",
        pre_norm: bool = False,
        project_inputs: bool = False,
    ):
        super().__init__()
        if attention not in ATTENTIONS:
            raise UserError(
                f"QueryDecoder has no attention {attention!r}.{did_you_mean(attention, ATTENTIONS)} "
                f"It has {', '.join(ATTENTIONS)}."
            )
        self.num_classes, self.num_queries = num_classes, num_queries
        self.query_feat, self.query_embed = nn.Embedding(num_queries, dim), nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(len(in_channels), dim)
        self.input_proj = nn.ModuleList(
            nn.Conv2d(c, dim, 1) if project_inputs or c != dim else nn.Identity() for c in in_channels
        )
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, feedforward, attention, pre_norm) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        for projection in self.input_proj:
            if isinstance(projection, nn.Conv2d):
                nn.init.kaiming_uniform_(projection.weight, a=1)
                nn.init.zeros_(projection.bias)

    def forward(self, mask_features: Tensor, maps: Sequence[Tensor], all_layers: bool = True) -> list[MaskPrediction]:
        """Predictions from the learnt queries and after each layer; with ``all_layers=False`` the last one only.

        Args:
            mask_features: (B, mask_dim, H/4, W/4).
            maps: (B, C_i, h_i, w_i), coarsest first.
        """
        memories, positions = [], []
        for level, (projection, x) in enumerate(zip(self.input_proj, maps, strict=True)):
            x = projection(x)
            memories.append(x + self.level_embed.weight[level][:, None, None])
            positions.append(sine_position_2d(*x.shape[-2:], x.shape[1], device=x.device, dtype=x.dtype))
        # resizing is linear: resized mask features give the resized masks at once, which the attention needs
        small = [F.interpolate(mask_features, x.shape[-2:], mode="bilinear", align_corners=False) for x in maps]
        batch = len(mask_features)
        x, query_pos = (e.weight.expand(batch, -1, -1) for e in (self.query_feat, self.query_embed))
        found = [self.predict(x, mask_features)] if all_layers else []
        for i, layer in enumerate(self.layers):
            level = i % len(memories)
            masks = self.masks(x, small[level]).detach()
            x = layer(x, query_pos, memories[level], positions[level], masks)
            if all_layers or i + 1 == len(self.layers):
                found.append(self.predict(x, mask_features))
        return found

    def masks(self, x: Tensor, mask_features: Tensor) -> Tensor:
        """Queries (B, Q, C), features (B, mask_dim, h, w) -> mask logits (B, Q, h, w)."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(self.decoder_norm(x)), mask_features)

    def predict(self, x: Tensor, mask_features: Tensor) -> MaskPrediction:
        """Queries (B, Q, C) -> classes and masks."""
        return MaskPrediction(self.class_embed(self.decoder_norm(x)), self.masks(x, mask_features))

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names (Mask2Former, PEM; ``static_query`` of old checkpoints) -> ours."""
        out = {}
        for key, value in state_dict.items():
            key = key.replace("static_query.", "query_feat.")
            key = re.sub(r"^transformer_cross_attention_layers\.(\d+)\.norm\.", r"layers.\1.cross_norm.", key)
            key = re.sub(r"^transformer_cross_attention_layers\.(\d+)\.(multihead_attn\.)?", r"layers.\1.cross_attn.", key)
            key = re.sub(r"^transformer_self_attention_layers\.(\d+)\.norm\.", r"layers.\1.self_norm.", key)
            key = re.sub(r"^transformer_self_attention_layers\.(\d+)\.", r"layers.\1.", key)
            key = re.sub(r"^transformer_ffn_layers\.(\d+)\.norm\.", r"layers.\1.ffn_norm.", key)
            key = re.sub(r"^transformer_ffn_layers\.(\d+)\.", r"layers.\1.", key)
            out[key] = value
        return out
