"""EfficientFormer and EfficientFormerV2: convolutional and pooling blocks, with a few attention blocks at low resolution.

Papers: "EfficientFormer: Vision Transformers at MobileNet Speed" (arXiv 2206.01191) and "Rethinking Vision Transformers for
MobileNet Size and Speed" (arXiv 2212.08059).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.conv import ConvNorm
from mmvit.layers.drop import DropPath, drop_rates
from mmvit.layers.mlp import FeedForward
from mmvit.layers.resize import resize
from mmvit.layers.scale import LayerScale, LayerScale2d
from mmvit.layers.transformer import PreNormBlock
from mmvit.layers.window import tensor_cache
from mmvit.registry import MODELS

from .poolformer import MapPyramid, Pooling

#: Makes a `ConvNorm` from channels, kernel size, ...
ConvMaker = Callable[..., ConvNorm]

KEY_DIM, VALUE_DIM = 32, 128


@tensor_cache(maxsize=8)
def distance_index(grid: int, stride: int, device: torch.device) -> Tensor:
    """Column of the bias table for each query and key: (grid^2 queries, (stride * grid)^2 keys).

    A query at (y1, x1) and a key at (y2, x2) have ``|stride * y1 - y2| * stride * grid + |stride * x1 - x2|``.
    """
    side = grid * stride
    distance = (stride * torch.arange(grid, device=device)[:, None] - torch.arange(side, device=device)).abs()
    return (distance[:, None, :, None] * side + distance[None, :, None]).flatten(2).flatten(0, 1)


class DistanceBias(nn.Module):
    """What attention adds for the distances of queries and keys on a fixed grid: -> (heads, queries, keys).

    For maps of another size the image of all pairs is bicubically resized, flattened pixels being its axes (as the papers'
    dense networks have it), not the table. Without gradients the last result is remembered for as long as the table stays.

    Args:
        num_heads: attention heads.
        grid: side of the grid of queries.
        stride: side of the grid of keys over that of the queries.
    """

    #: Entries of the largest result that is remembered.
    memory = 2**22

    def __init__(self, num_heads: int, grid: int, stride: int = 1):
        super().__init__()
        self.grid, self.stride = grid, stride
        self.table = nn.Parameter(torch.zeros(num_heads, (grid * stride) ** 2))
        self.known: tuple[Tensor, Tensor] | None = None  # a copy of the table, and the result

    def forward(self, queries: int, keys: int) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.compute(queries, keys)
        if self.known is not None:
            table, bias = self.known
            kind = table.dtype, table.device, *bias.shape[1:]
            if kind == (self.table.dtype, self.table.device, queries, keys) and torch.equal(table, self.table):
                return bias
        bias = self.compute(queries, keys)
        self.known = (self.table.detach().clone(), bias) if bias.numel() <= self.memory else None
        return bias

    def compute(self, queries: int, keys: int) -> Tensor:
        index = distance_index(self.grid, self.stride, self.table.device)
        bias = self.table.index_select(1, index.flatten()).view(-1, *index.shape)
        if index.shape == (queries, keys):
            return bias
        return F.interpolate(bias[None], (queries, keys), mode="bicubic", align_corners=False)[0]


class TokenAttention(nn.Module):
    """Attention of all pixels whose values have four times the channels of keys. (N, h, w, C) -> (N, h, w, C).

    Rows of ``qkv``: for each head query, key, value.
    """

    def __init__(self, dim: int, num_heads: int, grid: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, num_heads * (2 * KEY_DIM + VALUE_DIM))
        self.proj = nn.Linear(num_heads * VALUE_DIM, dim)
        self.bias = DistanceBias(num_heads, grid)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).view(batch, height * width, self.num_heads, -1).transpose(1, 2)
        query, key, value = qkv.split((KEY_DIM, KEY_DIM, VALUE_DIM), -1)  # (N, heads, h*w, 32 | 32 | 128)
        bias = self.bias(height * width, height * width).to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))


class TokenBlock(PreNormBlock):
    """A `PreNormBlock` of channels-last maps between maps: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNormMLP(nn.Module):
    """1x1 convolution, norm, GELU; the same with a depthwise 3x3 one if `depthwise`; 1x1 convolution, norm. Shapes stay."""

    def __init__(self, dim: int, hidden_dim: int, conv: ConvMaker, depthwise: bool):
        super().__init__()
        self.fc1 = conv(dim, hidden_dim, act="gelu")
        self.mid = conv(hidden_dim, hidden_dim, 3, groups=hidden_dim, act="gelu") if depthwise else nn.Identity()
        self.fc2 = conv(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.mid(self.fc1(x)))


class MLPBlock(nn.Module):
    """x + scale(mlp(x)), with stochastic depth `drop_path`. Shapes stay."""

    def __init__(self, mlp: nn.Module, scale: nn.Module, drop_path: float):
        super().__init__()
        self.mlp, self.scale2 = mlp, scale
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale2(self.mlp(x)))


class TalkingHeadAttention(nn.Module):
    """Attention of all pixels with mixed heads and a local branch of the values. (N, C, H, W) -> (N, C, H, W).

    Channels of ``qkv``: queries, keys, values, each head by head. With `stride` 2 attention works on a map of half the sides,
    and its result is bilinearly resized.
    """

    def __init__(self, dim: int, num_heads: int, grid: int, conv: ConvMaker, stride: int):
        super().__init__()
        self.num_heads, values = num_heads, num_heads * VALUE_DIM
        self.stride_conv = conv(dim, dim, 3, stride, groups=dim) if stride > 1 else nn.Identity()
        self.qkv = conv(dim, 2 * num_heads * KEY_DIM + values)
        self.v_local = conv(values, values, 3, groups=values)
        self.talking_head1 = nn.Conv2d(num_heads, num_heads, 1)
        self.talking_head2 = nn.Conv2d(num_heads, num_heads, 1)
        self.proj = conv(values, dim)
        self.bias = DistanceBias(num_heads, grid)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.stride_conv(x))
        keys, pixels = self.num_heads * KEY_DIM, qkv.shape[2] * qkv.shape[3]
        value = qkv[:, 2 * keys :]
        local = self.v_local(value)
        query, key = qkv[:, : 2 * keys].view(len(x), 2, self.num_heads, KEY_DIM, pixels).unbind(1)
        logits = (query * KEY_DIM**-0.5).transpose(2, 3) @ key + self.bias(pixels, pixels)  # (N, heads, queries, keys)
        weights = self.talking_head2(self.talking_head1(logits).softmax(-1))
        out = value.reshape(len(x), self.num_heads, VALUE_DIM, pixels) @ weights.transpose(2, 3)
        out = out.view_as(local) + local
        return self.proj(F.gelu(resize(out, x.shape[2:])))


class DownsamplingAttention(nn.Module):
    """Attention of the pixels of a halved map to those of the map. (N, C, H, W) -> (N, D, ceil(H/2), ceil(W/2))."""

    def __init__(self, dim: int, out_dim: int, num_heads: int, grid: int, conv: ConvMaker):
        super().__init__()
        self.num_heads, self.keys, values = num_heads, num_heads * KEY_DIM // 2, num_heads * VALUE_DIM // 2
        self.q_local = nn.Conv2d(dim, dim, 3, 2, 1, groups=dim)
        self.q = conv(dim, self.keys)
        self.kv = conv(dim, self.keys + values)
        self.v_local = conv(values, values, 3, 2, groups=values)
        self.proj = conv(values, out_dim)
        self.bias = DistanceBias(num_heads, grid, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        query, kv = self.q(self.q_local(x) + x[:, :, ::2, ::2]), self.kv(x)
        local = self.v_local(kv[:, self.keys :])
        parts = (query, kv[:, : self.keys], kv[:, self.keys :])
        tokens = [part.reshape(len(x), self.num_heads, part.shape[1] // self.num_heads, -1).transpose(2, 3) for part in parts]
        bias = self.bias(tokens[0].shape[2], tokens[1].shape[2]).to(query.dtype)
        out = F.scaled_dot_product_attention(*tokens, attn_mask=bias)  # (N, heads, queries, 64)
        out = out.transpose(2, 3).reshape(local.shape) + local
        return self.proj(F.gelu(out))


class AttentionDownsample(nn.Module):
    """A strided convolution plus `DownsamplingAttention`. (N, C, H, W) -> (N, D, ceil(H/2), ceil(W/2))."""

    def __init__(self, dim: int, out_dim: int, num_heads: int, grid: int, conv: ConvMaker):
        super().__init__()
        self.conv = conv(dim, out_dim, 3, 2)
        self.attn = DownsamplingAttention(dim, out_dim, num_heads, grid, conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.attn(x)


@MODELS.register_module()
class EfficientFormer(MapPyramid):
    """EfficientFormer (v1). (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3), each with a norm of the map.

    Sides round up at every halving.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dims, depths: channels and blocks of the stages.
        attention: number of the last blocks that have attention; in v2 of each of the last two stages.
        mlp_ratios: hidden channels of each block's MLP over its stage's channels, for each stage; all 4 if None.
        num_heads: attention heads.
        bias_grid: side, at stride 32, of the images that the attention biases belong to: 25 in the paper's detectors (800
            pixels), 16 in its segmenters, 7 in its classifiers. Other images have resized ones.
        layer_scale_init: first value of the factors of the residual branches.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        norm_eval: batch norms use their running statistics also in training, as in v2's dense recipes.
        frozen_stages: -1 trains all, 0 freezes the stem, k also the first k stages (but no norm of an output).
        out_indices: stages to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "efficientformer"
    arxiv = "2206.01191"
    #: Activation of the stem.
    stem_act: ClassVar[str] = "relu"
    variants = {
        "l1": dict(dims=(48, 96, 224, 448), depths=(3, 2, 6, 4), attention=1),
        "l3": dict(dims=(64, 128, 320, 512), depths=(4, 4, 12, 6), attention=4),
        "l7": dict(dims=(96, 192, 384, 768), depths=(6, 6, 18, 8), attention=8, layer_scale_init=1e-6),
        "debug": dict(
            dims=(8, 12, 16, 24), depths=(1, 2, 1, 2), attention=1, num_heads=2, layer_scale_init=0.5, drop_path_rate=0.1
        ),
    }

    def __init__(
        self,
        arch: str | None = None,
        *,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        attention: int | None = None,
        mlp_ratios: Sequence[Sequence[int]] | None = None,
        num_heads: int | None = None,
        bias_grid: int = 25,
        layer_scale_init: float | None = None,
        drop_path_rate: float | None = None,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        super().__init__(out_indices, with_cp)
        given = dict(dims=dims, depths=depths, attention=attention, mlp_ratios=mlp_ratios, num_heads=num_heads)
        given.update(layer_scale_init=layer_scale_init, drop_path_rate=drop_path_rate)
        defaults = dict(mlp_ratios=None, num_heads=8, layer_scale_init=1e-5, drop_path_rate=0.0)
        s = {**defaults, **self.settings(arch or next(iter(self.variants)), given)}
        dims, rates = s["dims"], drop_rates(s["drop_path_rate"], s["depths"])
        ratios = s["mlp_ratios"] or [[4] * depth for depth in s["depths"]]
        self.num_heads, self.bias_grid, self.scale_init = s["num_heads"], bias_grid, s["layer_scale_init"]
        self.conv, self.norm_eval = partial(ConvNorm, bias=True), norm_eval
        stem = self.conv(3, dims[0] // 2, 3, 2, act=self.stem_act), self.conv(dims[0] // 2, dims[0], 3, 2, act=self.stem_act)
        self._assemble(
            dims,
            nn.Sequential(*stem),
            [self._downsample(i, *dims[i : i + 2]) for i in range(3)],
            [
                [
                    self._block(i, dim, dim * ratio, rate, depth - j <= s["attention"])
                    for j, (ratio, rate) in enumerate(zip(ratios[i], rates[i], strict=True))
                ]
                for i, (dim, depth) in enumerate(zip(dims, s["depths"], strict=True))
            ],
            self._output_norm(),
        )
        self.apply(self._initialise)
        if frozen_stages >= 0:
            self._freeze(frozen_stages)
        self.train()

    def _downsample(self, stage: int, dim: int, out_dim: int) -> nn.Module:
        """What follows a stage."""
        return self.conv(dim, out_dim, 3, 2)

    def _block(self, stage: int, dim: int, hidden_dim: int, drop_path: float, attention: bool) -> nn.Module:
        """A block of a stage; `attention`: whether it is one of the last, which may have attention."""
        if attention and stage == 3:
            attn, mlp = TokenAttention(dim, self.num_heads, self.bias_grid), FeedForward(dim, hidden_dim)
            scales = LayerScale(dim, self.scale_init), LayerScale(dim, self.scale_init)
            return TokenBlock(nn.LayerNorm(dim), attn, nn.LayerNorm(dim), mlp, drop_path, *scales)
        mlp = ConvNormMLP(dim, hidden_dim, self.conv, depthwise=False)
        return self._unnormed_block(Pooling(), mlp, dim, drop_path)

    def _unnormed_block(self, mixer: nn.Module, mlp: nn.Module, dim: int, drop_path: float) -> nn.Module:
        scales = LayerScale2d(dim, self.scale_init), LayerScale2d(dim, self.scale_init)
        return PreNormBlock(nn.Identity(), mixer, nn.Identity(), mlp, drop_path, *scales)

    def _output_norm(self) -> Callable[[int], nn.Module] | None:
        return partial(nn.GroupNorm, 1)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """Weights of MLPs and linear layers N(0, 0.02) truncated, biases 0; other convolutions as PyTorch makes them."""
        layers = (module.fc1.conv, module.fc2.conv) if isinstance(module, ConvNormMLP) else (module,)
        for layer in layers if isinstance(module, (ConvNormMLP, nn.Linear)) else ():
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def no_weight_decay(self) -> set[str]:
        tables = {name for name, _ in self.named_parameters() if name.endswith(".bias.table")}
        return super().no_weight_decay() | tables

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Attention biases of another grid are bicubically resized: the first and last entries are those of the old grid."""
        old, new = (round(entries**0.5) for entries in (value.shape[-1], own.shape[-1]))
        if not name.endswith(".bias.table") or old * old != value.shape[-1] or len(value) != len(own):
            return value
        grid = value.view(1, -1, old, old).to(torch.promote_types(value.dtype, torch.float32))
        resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=True)
        return resized.view(-1, new * new).to(value.dtype)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the papers' repository -> ours; what only a classifier has, and constants, go.

        The dense networks' own attention biases are used where there are any, the classifier's otherwise.
        """
        conv_blocks = {key.split(".mlp.norm1.")[0] for key in state_dict if ".mlp.norm1." in key}
        renamed: dict[str, Any] = {}
        for key, value in state_dict.items():
            unused = key.endswith(".attention_biases") and f"{key}_seg" in state_dict
            if unused or key.startswith(("norm.", "head.", "dist_head.")) or ".attention_bias_idxs" in key:
                continue
            prefix = ".".join(key.split(".")[:3])
            if key.startswith("network.6.") and prefix not in conv_blocks:  # behind the layer that flattens maps to tokens
                index, rest = key.split(".", 3)[2:]
                key = f"network.6.{int(index) - 1}.{rest}"
            name, part = _our_name(key, prefix in conv_blocks)
            if part is None:
                renamed[name] = value.flatten() if name.endswith(".gamma") else value
            else:
                renamed.setdefault(name, {})[part] = value
        return {name: _joined(value) if isinstance(value, dict) else value for name, value in renamed.items()}


#: (official name, ours), in order of application.
_NAMES = (
    (r"^norm(\d)\.", lambda m: f"norm{int(m[1]) // 2}."),
    (r"^patch_embed\.(\d)\.", lambda m: f"patch_embed.{int(m[1]) // 3}.{('conv', 'norm')[int(m[1]) % 3]}."),
    (r"^network\.([135])\.attn\.", lambda m: f"downsamples.{int(m[1]) // 2}.token_mixer."),
    (r"^network\.(5)\.conv\.", lambda m: "downsamples.2.conv.conv."),
    (r"^network\.(5)\.bn\.", lambda m: "downsamples.2.conv.norm."),
    (r"^network\.([135])\.proj\.", lambda m: f"downsamples.{int(m[1]) // 2}.conv."),
    (r"^network\.([135])\.", lambda m: f"downsamples.{int(m[1]) // 2}."),
    (r"^network\.(\d)\.", lambda m: f"stages.{int(m[1]) // 2}."),
    (r"\.token_mixer\.", lambda m: ".attn."),
    (r"\.attention_biases(_seg)?$", lambda m: ".bias.table"),
    (r"\.layer_scale_(\d)$", lambda m: f".scale{m[1]}.gamma"),
    (r"\.q\.local\.0\.", lambda m: ".q_local."),
    (r"\.q\.proj\.(\d)\.", lambda m: f".q.{m[1]}."),
    (r"\.(q|k|v|v_local|stride_conv)\.([01])\.", lambda m: f".{m[1]}.{('conv', 'norm')[int(m[2])]}."),
    (r"\.proj\.([12])\.", lambda m: f".proj.{('conv', 'norm')[int(m[1]) - 1]}."),
)
#: Names inside the convolutional MLPs.
_MLP_NAMES = (
    (r"\.mlp\.(fc\d|mid)\.", lambda m: f".mlp.{m[1]}.conv."),
    (r"\.mlp\.norm(\d)\.", lambda m: f".mlp.fc{m[1]}.norm."),
    (r"\.mlp\.mid_norm\.", lambda m: ".mlp.mid.norm."),
)


def _our_name(key: str, conv_mlp: bool) -> tuple[str, str | None]:
    """Our name of an entry, and which part of it it is (``q``, ``k`` or ``v``) where ours is the union of several layers."""
    for theirs, ours in (*_NAMES, *(_MLP_NAMES if conv_mlp else ())):
        key = re.sub(theirs, ours, key)
    part = re.search(r"\.attn\.([qkv])\.", key)
    union = "kv" if key.startswith("downsamples.") else "qkv"
    if part is None or part[1] not in union:
        return key, None
    return key.replace(part[0], f".attn.{union}."), part[1]


def _joined(parts: dict[str, Tensor]) -> Tensor:
    """The values of queries, keys and values, one after the other."""
    values = [parts[name] for name in "qkv" if name in parts]
    return torch.cat(values) if values[0].dim() else values[0]


@MODELS.register_module()
class EfficientFormerV2(EfficientFormer):
    """EfficientFormerV2. (N, 3, H, W) -> maps of stride 4, 8, 16, 32 (`out_indices` 0 to 3); sides round up at every halving.

    Arguments are those of `EfficientFormer`.
    """

    family = "efficientformerv2"
    arxiv = "2212.08059"
    stem_act = "gelu"
    variants = {
        "s0": dict(
            dims=(32, 48, 96, 176),
            depths=(2, 2, 6, 4),
            attention=2,
            mlp_ratios=((4,) * 2, (4,) * 2, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
        ),
        "s1": dict(
            dims=(32, 48, 120, 224),
            depths=(3, 3, 9, 6),
            attention=2,
            mlp_ratios=((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
        ),
        "s2": dict(
            dims=(32, 64, 144, 288),
            depths=(4, 4, 12, 8),
            attention=4,
            mlp_ratios=((4,) * 4, (4,) * 4, (4, 4, *(3,) * 6, *(4,) * 4), (4, 4, *(3,) * 4, 4, 4)),
            drop_path_rate=0.02,
        ),
        "l": dict(
            dims=(40, 80, 192, 384),
            depths=(5, 5, 15, 10),
            attention=6,
            mlp_ratios=((4,) * 5, (4,) * 5, (*(4,) * 4, *(3,) * 7, *(4,) * 4), (4, 4, 4, *(3,) * 4, 4, 4, 4)),
            drop_path_rate=0.1,
        ),
        "debug": dict(
            dims=(8, 12, 16, 24),
            depths=(1, 2, 2, 1),
            attention=1,
            mlp_ratios=((2,), (2, 3), (2, 2), (2,)),
            num_heads=2,
            layer_scale_init=0.5,
            drop_path_rate=0.1,
        ),
    }

    def _downsample(self, stage: int, dim: int, out_dim: int) -> nn.Module:
        if stage == 2:
            return AttentionDownsample(dim, out_dim, self.num_heads, self.bias_grid, self.conv)
        return super()._downsample(stage, dim, out_dim)

    def _block(self, stage: int, dim: int, hidden_dim: int, drop_path: float, attention: bool) -> nn.Module:
        mlp = ConvNormMLP(dim, hidden_dim, self.conv, depthwise=True)
        if not attention or stage < 2:
            return MLPBlock(mlp, LayerScale2d(dim, self.scale_init), drop_path)
        mixer = TalkingHeadAttention(dim, self.num_heads, self.bias_grid, self.conv, stride=2 if stage == 2 else 1)
        return self._unnormed_block(mixer, mlp, dim, drop_path)

    def _output_norm(self) -> None:
        return None
