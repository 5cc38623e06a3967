"""kMaX-DeepLab's decoder (arXiv 2207.04044): cross-attention as a k-means step between queries and pixels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.axial import NORM_EPS, NORM_MOMENTUM
from mmvit.layers.conv import ConvNorm, set_batch_norms
from mmvit.layers.drop import DropPath
from mmvit.layers.reparam import batch_norm_affine, fold_after
from mmvit.layers.resize import odd_resize
from mmvit.ops.sampling import at_least_float32
from mmvit.registry import MODELS

from .query_decoder import MaskPrediction

HEADS = 8


@dataclass
class KMaXPrediction(MaskPrediction):
    """`MaskPrediction` with the pixels' features (B, dim / 2, h, w) of length 1."""

    features: Tensor


class QueryConv(nn.Module):
    """`act(norm(conv(x)))` over queries: (B, I, n) -> (B, O, n)."""

    def __init__(self, in_channels: int, out_channels: int, act: bool = False):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)
        self.act = nn.GELU() if act else nn.Identity()
        nn.init.trunc_normal_(self.conv.weight, std=math.sqrt(2 / in_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the normalisation into the convolution (evaluation only; see `layers.reparam.deploy`)."""
        if isinstance(self.norm, nn.BatchNorm1d):
            fold_after(self.conv, *batch_norm_affine(self.norm))
            self.norm = nn.Identity()


class Predictor(nn.Module):
    """Embeddings of queries and a map -> classes, masks and pixel features.

    The last class logit ("void") starts, and stays, ahead by ln(9 C): most queries find nothing.
    """

    def __init__(self, in_channels: int, num_classes: int, dim: int):
        super().__init__()
        self.void_bias = math.log(num_classes * 0.9 / 0.1)
        self.pixel_conv0 = ConvNorm(in_channels, in_channels, 5, groups=in_channels, act="gelu")
        self.pixel_conv1 = ConvNorm(in_channels, dim, act="gelu")
        self.pixel_last = ConvNorm(dim, dim // 2, bias=True)
        self.mask_head = QueryConv(dim, dim // 2)
        self.class_head = nn.Conv1d(dim, num_classes + 1, 1)
        self.mask_norm = nn.BatchNorm2d(1)
        nn.init.trunc_normal_(self.class_head.weight, std=0.01)
        nn.init.zeros_(self.class_head.bias)
        nn.init.trunc_normal_(self.pixel_last.conv.weight, std=0.01)
        nn.init.constant_(self.mask_norm.weight, 0.1)

    def forward(self, mask_embedding: Tensor, class_embedding: Tensor, pixels: Tensor) -> KMaXPrediction:
        """Embeddings (B, dim, n), pixels (B, C, h, w)."""
        features = F.normalize(self.features(pixels), dim=1)
        logits = self.class_head(class_embedding).transpose(1, 2)
        logits = torch.cat([logits[..., :-1], logits[..., -1:] + self.void_bias], -1)
        masks = self.mask_head(mask_embedding).transpose(1, 2) @ features.flatten(2)  # (B, n, h*w)
        masks = self.mask_norm(masks[:, None])[:, 0].unflatten(2, features.shape[-2:])
        return KMaXPrediction(logits, masks, features)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixel features (B, dim / 2, h, w) before they get the length 1."""
        return self.pixel_last(self.pixel_conv1(self.pixel_conv0(pixels)))

    def winners(self, mask_embedding: Tensor, pixels: Tensor) -> Tensor:
        """The query with the largest mask logit (of `forward` in evaluation) at each pixel, (B, h*w).

        The pixel's length and the norm of the masks, an increasing function unless its weight is negative, change no rank.
        """
        masks = self.features(pixels).flatten(2).transpose(1, 2) @ self.mask_head(mask_embedding)
        return (masks * self.mask_norm.weight.sign()).argmax(-1)


class QuerySelfAttention(nn.Module):
    """Self-attention of the queries with batch-normed logits: (B, 2 dim, n), channels q | k | v -> (B, dim, n)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depths = (dim // 2, dim // 2, dim)
        self.similarity_norm = nn.BatchNorm2d(HEADS)
        self.value_norm = nn.BatchNorm1d(dim)

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (HEADS, -1)) for part in qkv.split(self.depths, 1))
        weights = self.similarity_norm(q.transpose(-1, -2) @ k).softmax(-1)
        return F.gelu(self.value_norm((v @ weights.transpose(-1, -2)).flatten(1, 2)))


def assigned_sums(values: Tensor, masks: Tensor) -> Tensor:
    """The k-means step: each pixel goes to the query with its largest mask logit, each query gets the sum of its pixels.

    values (B, C, h, w), masks (B, n, h, w) -> (B, C, n), in float32 or finer. No gradient reaches the assignment.
    """
    return sums_of(values, masks.detach().flatten(2).argmax(1), masks.shape[1])


def sums_of(values: Tensor, winner: Tensor, count: int) -> Tensor:
    """Sums (B, C, count), in float32 or finer, of the pixels of values (B, C, h, w) that go to each of `count` queries.

    winner (B, h*w): the query of each pixel.
    """
    batch, channels = values.shape[:2]
    tokens = at_least_float32(values.flatten(2)).transpose(1, 2).reshape(-1, channels)
    image = torch.arange(batch, device=winner.device)[:, None] * count
    sums = tokens.new_zeros(batch * count, channels).index_add(0, (winner + image).flatten(), tokens)
    return sums.unflatten(0, (batch, count)).transpose(1, 2)


class KMeansLayer(nn.Module):
    """One decoder layer on a map: k-means cross-attention, self-attention, feed-forward. Queries are (B, dim, n)."""

    def __init__(self, in_channels: int, num_classes: int, dim: int = 256, drop_path: float = 0.0):
        super().__init__()
        self.query_conv1 = QueryConv(dim, dim, act=True)
        self.pixel_conv1 = ConvNorm(in_channels, dim, act="gelu")
        self.query_qkv = QueryConv(dim, 2 * dim)
        self.pixel_value = ConvNorm(dim, dim)
        self.self_attention = QuerySelfAttention(dim)
        self.query_conv3 = QueryConv(dim, dim)
        self.ffn_conv1, self.ffn_conv2 = QueryConv(dim, 8 * dim, act=True), QueryConv(8 * dim, dim)
        self.predictor = Predictor(dim, num_classes, dim)
        self.kmeans_norm = nn.BatchNorm1d(dim)
        self.kmeans_conv = QueryConv(dim, dim)
        self.drop_path = DropPath(drop_path)
        for layer in (self.query_conv3, self.ffn_conv2, self.kmeans_conv):
            nn.init.zeros_(layer.norm.weight)
        for layer, channels in ((self.query_qkv, dim), (self.pixel_value, dim)):
            nn.init.normal_(layer.conv.weight, std=channels**-0.5)

    def forward(self, queries: Tensor, x: Tensor) -> tuple[Tensor, KMaXPrediction]:
        pixels, embedding = self.pixel_conv1(F.gelu(x)), self.query_conv1(queries)
        found = self.predictor(embedding, embedding, pixels)
        with torch.autocast(x.device.type, enabled=False):
            sums = assigned_sums(self.pixel_value(at_least_float32(pixels)), found.masks)
        return self.update(queries, embedding, sums), found

    def next_queries(self, queries: Tensor, activated: Tensor) -> Tensor:
        """The queries that `forward` returns in evaluation, without its prediction. activated: gelu(x).

        The value layer is affine there: the values of a query's pixels sum to the value of their mean, times their number.
        """
        pixels, embedding = self.pixel_conv1(activated), self.query_conv1(queries)
        winner = self.predictor.winners(embedding, pixels)
        with torch.autocast(activated.device.type, enabled=False):
            sums = sums_of(pixels, winner, queries.shape[-1])  # (B, dim, n)
            sizes = sums_of(sums.new_ones(len(sums), 1, 1, winner.shape[1]), winner, queries.shape[-1])
            sums = self.pixel_value((sums / sizes.clamp(min=1))[..., None])[..., 0] * sizes
        return self.update(queries, embedding, sums)

    def update(self, queries: Tensor, embedding: Tensor, sums: Tensor) -> Tensor:
        """Queries after the k-means step with `sums` (B, dim, n), self-attention and feed-forward."""
        with torch.autocast(queries.device.type, enabled=False):
            update = self.kmeans_conv(self.kmeans_norm(sums))
        queries = queries + self.drop_path(update)
        queries = F.gelu(queries + self.drop_path(self.query_conv3(self.self_attention(self.query_qkv(embedding)))))
        queries = F.gelu(queries + self.drop_path(self.ffn_conv2(self.ffn_conv1(queries))))
        return queries


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and a pooled branch. (B, I, H, W) -> (B, dim, H, W)."""

    def __init__(self, in_channels: int, dim: int, rates: Sequence[int] = (6, 12, 18)):
        super().__init__()
        self.conv0 = ConvNorm(in_channels, dim, act="gelu")
        self.dilated = nn.ModuleList()
        for rate in rates:
            layer = ConvNorm(in_channels, dim, 3, act="gelu", padding=rate)
            layer.conv.dilation = (rate, rate)
            self.dilated.append(layer)
        self.pool = ConvNorm(in_channels, dim, act="gelu")
        self.project = ConvNorm((2 + len(rates)) * dim, dim, act="gelu")
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.dropout(self.project(torch.cat([self.conv0(x), *(conv(x) for conv in self.dilated), pooled], 1)))


def _separable(in_channels: int, dim: int) -> nn.Sequential:
    """Depthwise 5x5, then 1x1 to `dim` channels."""
    return nn.Sequential(
        ConvNorm(in_channels, in_channels, 5, groups=in_channels, act="gelu"), ConvNorm(in_channels, dim, act="gelu")
    )


class AuxiliarySemantic(nn.Module):
    """Semantic logits from the backbone's maps, used in training only.

    With `fine` (COCO, ADE20K): ASPP on stride 32, enriched at strides 8 and 4; C + 1 logits at stride 4. Without
    (Cityscapes): C logits at stride 32.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, fine: bool = True, dim: int = 256):
        super().__init__()
        self.fine = fine
        if fine:
            self.aspp = ASPP(in_channels[3], dim)
            self.low8, self.low4 = ConvNorm(in_channels[1], 64, act="gelu"), ConvNorm(in_channels[0], 32, act="gelu")
            self.fuse8, self.fuse4 = _separable(dim + 64, dim), _separable(dim + 32, dim)
        self.convs = _separable(dim if fine else in_channels[3], dim)
        self.final = nn.Conv2d(dim, num_classes + 1 if fine else num_classes, 1)
        set_batch_norms(self, NORM_EPS, NORM_MOMENTUM)
        nn.init.trunc_normal_(self.final.weight, std=0.01)
        nn.init.zeros_(self.final.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of strides 4, 8, 16, 32 -> logits."""
        x = maps[3]
        if self.fine:
            width = x.shape[-1]
            x = self.aspp(x)
            for low, fuse, fine in ((self.low8, self.fuse8, maps[1]), (self.low4, self.fuse4, maps[0])):
                x = fuse(torch.cat([odd_resize(x, fine.shape[-2:], width), low(fine)], 1))
        return self.final(self.convs(x))


@MODELS.register_module()
class KMaXDecoder(nn.Module):
    """k-means decoder: layers on strides 32, 16, 8, a final prediction on the panoptic feature.

    Args:
        in_channels: of the three maps, coarsest first.
        mask_dim: channels of the panoptic feature.
        num_classes: without void.
        num_queries: queries.
        num_layers: on each map.
        drop_path: of the residual branches.
        dim: width.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        mask_dim: int,
        num_classes: int,
        num_queries: int = 128,
        num_layers: Sequence[int] = (2, 2, 2),
        drop_path: float = 0.2,
        dim: int = 256,
    ):
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        self.per_map = tuple(num_layers)
        self.centres = nn.Embedding(dim, num_queries)
        self.layers = nn.ModuleList(
            KMeansLayer(c, num_classes, dim, drop_path)
            for c, count in zip(in_channels, num_layers, strict=True)
            for _ in range(count)
        )
        self.class_projection, self.mask_projection = QueryConv(dim, dim, act=True), QueryConv(dim, dim, act=True)
        self.predictor = Predictor(mask_dim, num_classes, dim)
        set_batch_norms(self, NORM_EPS, NORM_MOMENTUM)

    def forward(self, mask_features: Tensor, maps: Sequence[Tensor], all_layers: bool = True) -> list[KMaXPrediction]:
        """One prediction per layer, then the final one, at the size of `mask_features`; without `all_layers` the last only."""
        queries = self.centres.weight.expand(len(mask_features), -1, -1)
        layers, found = iter(self.layers), []
        size, side = mask_features.shape[-2:], mask_features.shape[-2]
        for x, count in zip(maps, self.per_map, strict=True):
            if not all_layers and not self.training:
                activated = F.gelu(x)
                for layer in itertools.islice(layers, count):
                    queries = layer.next_queries(queries, activated)
                continue
            for layer in itertools.islice(layers, count):
                queries, prediction = layer(queries, x)
                if all_layers:
                    masks, features = odd_resize(prediction.masks, size, side), odd_resize(prediction.features, size, side)
                    found.append(KMaXPrediction(prediction.logits, masks, features))
        return [*found, self.predictor(self.mask_projection(queries), self.class_projection(queries), mask_features)]

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names -> ours, without those of the auxiliary semantic head."""
        kept = {k: v for k, v in state_dict.items() if not k.startswith("_auxiliary_semantic_predictor.")}
        return {_rename(key): value for key, value in kept.items()}


def convert_auxiliary(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names of `AuxiliarySemantic` (without their prefix) -> ours."""
    return {_rename(key): value for key, value in state_dict.items()}


_NAMES = [
    ("_kmax_transformer_layers.", "layers."),
    ("_cluster_centers.", "centres."),
    ("_class_embedding_projection.", "class_projection."),
    ("_mask_embedding_projection.", "mask_projection."),
    ("_predcitor.", "predictor."),
    ("_pixel_space_head_conv0bnact.", "pixel_conv0."),
    ("_pixel_space_head_conv1bnact.", "pixel_conv1."),
    ("_pixel_space_head_last_convbn.", "pixel_last."),
    ("_transformer_mask_head.", "mask_head."),
    ("_transformer_class_head.conv.", "class_head."),
    ("_pixel_space_mask_batch_norm.", "mask_norm."),
    ("_query_conv1_bn_act.", "query_conv1."),
    ("_pixel_conv1_bn_act.", "pixel_conv1."),
    ("_query_qkv_conv_bn.", "query_qkv."),
    ("_pixel_v_conv_bn.", "pixel_value."),
    ("_query_self_attention._batch_norm_similarity.", "self_attention.similarity_norm."),
    ("_query_self_attention._batch_norm_retrieved_value.", "self_attention.value_norm."),
    ("_kmeans_query_batch_norm_retrieved_value.", "kmeans_norm."),
    ("_kmeans_query_conv3_bn.", "kmeans_conv."),
    ("_query_conv3_bn.", "query_conv3."),
    ("_query_ffn_conv1_bn_act.", "ffn_conv1."),
    ("_query_ffn_conv2_bn.", "ffn_conv2."),
    ("_aspp._aspp_conv0.", "aspp.conv0."),
    ("_aspp._aspp_pool.", "aspp.pool."),
    ("_aspp._proj_conv_bn_act.", "aspp.project."),
    ("_low_level_projection_os", "low"),
    ("conv_block_0.", "convs.0."),
    ("conv_block_1.", "convs.1."),
    ("final_conv.conv.", "final."),
]


def _rename(key: str) -> str:
    for theirs, ours in _NAMES:
        key = key.replace(theirs, ours)
    key = re.sub(r"_low_level_fusion_os(\d)_conv(\d)_bn_act\.", r"fuse\1.\2.", key)
    return re.sub(r"_aspp\._aspp_conv(\d)\.", lambda m: f"aspp.dilated.{int(m[1]) - 1}.", key)
