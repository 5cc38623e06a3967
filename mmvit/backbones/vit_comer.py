"""ViT-CoMer: a plain vision transformer that exchanges features with a convolutional pyramid beside it.

Paper: "ViT-CoMer: Vision Transformer with Convolutional Multi-scale Feature Interaction for Dense Predictions"
(arXiv 2403.07392).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.attention import check_heads
from mmvit.layers.conv import ConvNorm
from mmvit.layers.deform_attn import MSDeformAttn
from mmvit.layers.drop import DropPath
from mmvit.layers.init import init_by_fan_out
from mmvit.layers.mlp import FeedForward
from mmvit.layers.reparam import batch_norm_affine, fold_after
from mmvit.layers.resize import resize
from mmvit.layers.scale import LayerScale
from mmvit.layers.transformer import PreNormBlock
from mmvit.layers.window import pad_to_multiple, tensor_cache, window_partition, window_reverse
from mmvit.registry import MODELS

from .vit import EPS, PlainTransformer

#: (height, width) of the pyramid's levels, strides 8, 16, 32.
Shapes = tuple[tuple[int, int], ...]
POINTS = (4, 4, 4)


@tensor_cache(maxsize=8)
def cell_centres(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The centre (x, y) of every pixel of all levels, 0 and 1 being the borders of its map: (1, pixels, 2)."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(centres)[None]


def to_maps(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """The levels of a pyramid's tokens (N, L, C) as maps (N, C, h, w)."""
    levels = tokens.split([h * w for h, w in shapes], 1)
    return [level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, shapes)]


def to_tokens(maps: Sequence[Tensor]) -> Tensor:
    """The inverse of `to_maps`."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)


def add_to_middle(c: Tensor, x: Tensor, shapes: Shapes) -> Tensor:
    """Add the transformer's map x (N, H, W, C) to the level of stride 16 of the pyramid's tokens c (N, L, C)."""
    fine, middle, coarse = c.split([h * w for h, w in shapes], 1)
    return torch.cat([fine, middle + x.flatten(1, 2), coarse], 1)


class MapAttention(nn.Module):
    """Attention over a map or inside its windows. (B, H, W, C) -> (B, H, W, C).

    Queries, keys and values are filled up to whole windows with zeros, which take part as keys.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.window = None if window is None else (window, window)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        qkv = self.qkv(x)
        if self.window is None:
            return self.proj(self.attend(qkv.flatten(1, 2)).unflatten(1, (height, width)))
        qkv = pad_to_multiple(qkv, self.window)
        grid = qkv.shape[1:3]
        out = window_reverse(self.attend(window_partition(qkv, self.window)), self.window, *grid)
        return self.proj(out[:, :height, :width])

    def attend(self, qkv: Tensor) -> Tensor:
        """(B, T, 3C) -> (B, T, C)."""
        batch, tokens, _ = qkv.shape
        query, key, value = qkv.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).reshape(batch, tokens, -1)


class Stem(nn.Module):
    """Images -> maps of `dim` channels and stride 4 (with `finest` only, else None), 8, 16, 32."""

    def __init__(self, width: int, dim: int, finest: bool):
        super().__init__()
        convs = [ConvNorm(i, width, 3, stride, act="relu") for i, stride in ((3, 2), (width, 1), (width, 1))]
        self.stem = nn.Sequential(*convs, nn.MaxPool2d(3, 2, 1))
        self.conv2 = ConvNorm(width, 2 * width, 3, 2, act="relu")
        self.conv3 = ConvNorm(2 * width, 4 * width, 3, 2, act="relu")
        self.conv4 = ConvNorm(4 * width, 4 * width, 3, 2, act="relu")
        self.fc1 = nn.Conv2d(width, dim, 1) if finest else None
        self.fc2 = nn.Conv2d(2 * width, dim, 1)
        self.fc3 = nn.Conv2d(4 * width, dim, 1)
        self.fc4 = nn.Conv2d(4 * width, dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return None if self.fc1 is None else self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


class TwoFields(nn.Module):
    """Depthwise convolutions, 3x3 of the first half of the channels and 5x5 of the second, then batch norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv3 = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.conv5 = nn.Conv2d(dim // 2, dim // 2, 5, padding=2, groups=dim // 2)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return self.norm(torch.cat([self.conv3(first), self.conv5(second)], 1))

    def merge(self) -> None:
        """Fold the norm into the convolutions (evaluation only; see `layers.reparam.deploy`)."""
        if isinstance(self.norm, nn.Identity):
            return
        scale, shift = (part.chunk(2) for part in batch_norm_affine(self.norm))
        fold_after(self.conv3, scale[0], shift[0])
        fold_after(self.conv5, scale[1], shift[1])
        self.norm = nn.Identity()


class MRFP(nn.Module):
    """Multi-receptive-field feature pyramid (section 3.2): an MLP with `TwoFields` on every level. (N, L, C) -> (N, L, C)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.levels = nn.ModuleList(TwoFields(hidden_dim) for _ in POINTS)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, c: Tensor, shapes: Shapes) -> Tensor:
        maps = to_maps(self.fc1(c), shapes)
        c = to_tokens([F.gelu(level(x)) for level, x in zip(self.levels, maps)])
        return self.fc2(F.gelu(c))


class PyramidFeedForward(FeedForward):
    """Two linear layers with one 3x3 depthwise convolution of all levels and GELU between them. (N, L, C) -> (N, L, C)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)

    def forward(self, c: Tensor, shapes: Shapes) -> Tensor:
        maps = to_maps(self.fc1(c), shapes)
        return self.fc2(F.gelu(to_tokens([self.dwconv(x) for x in maps])))


class PyramidAttention(nn.Module):
    """Multi-scale deformable self-attention of a pyramid and an MLP; each is added if `residual`, else the second only.

    query and feat (N, L, C) -> (N, L, C).
    """

    def __init__(self, dim: int, num_heads: int, ratio: float, drop_path: float, residual: bool):
        super().__init__()
        self.residual = residual
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=EPS)
        self.attn = MSDeformAttn(dim, num_heads, POINTS, ratio=ratio)
        self.ffn_norm = nn.LayerNorm(dim, eps=EPS)
        self.ffn = PyramidFeedForward(dim, dim // 4)
        self.drop_path = DropPath(drop_path)

    def forward(self, query: Tensor, feat: Tensor, shapes: Shapes) -> Tensor:
        centres = cell_centres(shapes, query.device, torch.promote_types(query.dtype, torch.float32))
        z = self.attn(self.query_norm(query), centres.expand(len(query), -1, -1), self.feat_norm(feat), shapes)
        z = query + z if self.residual else z
        return z + self.drop_path(self.ffn(self.ffn_norm(z), shapes))


class ToTransformer(PyramidAttention):
    """CTI before a quarter of the transformer: the pyramid attends to itself, its sum over levels goes to the transformer.

    x (N, H, W, C), c (N, L, C) -> (N, H, W, C).
    """

    def __init__(self, dim: int, num_heads: int, ratio: float, drop_path: float):
        super().__init__(dim, num_heads, ratio, drop_path, residual=False)
        self.scale = LayerScale(dim, 0.0)  # at first the ViT computes what it was pretrained for

    def forward(self, x: Tensor, c: Tensor, shapes: Shapes) -> Tensor:
        maps = to_maps(super().forward(c, c, shapes), shapes)
        total = sum(resize(level, shapes[1]) for level in maps)
        return x + self.scale(total.permute(0, 2, 3, 1))


class ToPyramid(nn.Module):
    """CTI after a quarter of the transformer: its map joins the pyramid, which attends to itself.

    The residual runs from the normed tokens, as in the paper's code. x (N, H, W, C), c (N, L, C) -> (N, L, C).

    Args:
        has_ffn: an MLP before the attention, as the extra modules at the end have it.
    """

    def __init__(self, dim: int, num_heads: int, ratio: float, drop_path: float, has_ffn: bool):
        super().__init__()
        if has_ffn:
            self.ffn_norm = nn.LayerNorm(dim, eps=EPS)
            self.ffn = PyramidFeedForward(dim, dim // 4)
        self.has_ffn = has_ffn
        self.drop_path = DropPath(drop_path)
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=EPS)
        self.cfinter = PyramidAttention(dim, num_heads, ratio, drop_path, residual=True)

    def forward(self, x: Tensor, c: Tensor, shapes: Shapes) -> Tensor:
        c = add_to_middle(c, x, shapes)
        if self.has_ffn:
            c = c + self.drop_path(self.ffn(self.ffn_norm(c), shapes))
        return self.cfinter(self.query_norm(c), self.feat_norm(c), shapes)


class Interaction(nn.Module):
    """What surrounds a quarter of the transformer's blocks."""

    def __init__(self, dim: int, num_heads: int, ratio: float, hidden_dim: int, drop_path: float, extra: int):
        super().__init__()
        self.mrfp = MRFP(dim, hidden_dim)
        self.cti_tov = ToTransformer(dim, num_heads, ratio, drop_path)
        self.cti_toc = ToPyramid(dim, num_heads, ratio, drop_path, has_ffn=False)
        self.extra_CTIs = nn.ModuleList(ToPyramid(dim, num_heads, ratio, drop_path, has_ffn=True) for _ in range(extra))


@MODELS.register_module()
class ViTCoMer(PlainTransformer):
    """ViT-CoMer on a plain ViT. (N, 3, H, W) -> maps of stride 4, 8, 16, 32, all as wide as the ViT; sides round up.

    Images are filled up to sides that are multiples of 32 with zeros. All outputs depend on the whole network. The ViT's part
    (patch embedding, ``pos_embed``, blocks) starts from DeiT's or DINOv2's weights; only it has depths for layer-wise decay.

    Args:
        arch: a name of `variants`; the following arguments override it.
        dim, depth, num_heads: channels, blocks and attention heads of the ViT.
        deform_heads, deform_ratio: heads of the deformable attention, and channels of its values over `dim`.
        mrfp_ratio: hidden channels of `MRFP` over `dim`.
        window: side of the windows of all but the last block of a quarter; None: all blocks attend to the whole map.
        add_each_quarter: add the ViT's map after quarter i to output i (segmentation) in place of its last map to all.
        pretrain_size: side of the images whose maps the position table has the size of.
        stem_width: channels of the stem at stride 4.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0. The interactions have the full rate.
        frozen_stages: -1 trains all, 0 freezes the ViT's embedding, k also the first k quarters of its blocks.
        out_indices: maps to return.
        with_cp: recompute blocks in the backward pass (less memory).
    """

    family = "vit_comer"
    arxiv = "2403.07392"
    strides = (4, 8, 16, 32)
    sequential = False
    _tiny = dict(dim=192, num_heads=3, deform_heads=6, mrfp_ratio=6.0, drop_path_rate=0.1)
    _small = dict(dim=384, num_heads=6, deform_heads=6, drop_path_rate=0.2)
    _base = dict(dim=768, num_heads=12, deform_heads=12, deform_ratio=0.5, drop_path_rate=0.3)
    _detection = dict(mrfp_ratio=0.5, window=14, add_each_quarter=False, pretrain_size=592)
    _debug = dict(dim=16, num_heads=2, deform_heads=2, deform_ratio=0.5, drop_path_rate=0.1, mrfp_ratio=1.0) | dict(
        mlp_ratio=2.0, pretrain_size=80, stem_width=4
    )
    variants = {
        "t": _tiny,
        "s": dict(_small, mrfp_ratio=1.5),
        "b": dict(_base, mrfp_ratio=1.0),
        "s_det": _small | _detection,
        "b_det": _base | _detection,
        "debug": dict(_debug, depth=4),
        "det_debug": _debug | dict(depth=8, window=3, add_each_quarter=False),
    }

    def __init__(
        self,
        arch: str = "s",
        *,
        dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        deform_heads: int | None = None,
        deform_ratio: float | None = None,
        mrfp_ratio: float | None = None,
        window: int | None = None,
        add_each_quarter: bool | None = None,
        pretrain_size: int | None = None,
        mlp_ratio: float | None = None,
        stem_width: int | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        with_cp: bool = False,
    ):
        given = dict(dim=dim, depth=depth, num_heads=num_heads, deform_heads=deform_heads, deform_ratio=deform_ratio)
        given |= dict(mrfp_ratio=mrfp_ratio, window=window, add_each_quarter=add_each_quarter, pretrain_size=pretrain_size)
        given |= dict(mlp_ratio=mlp_ratio, stem_width=stem_width, drop_path_rate=drop_path_rate)
        s = dict(depth=12, deform_ratio=1.0, window=None, add_each_quarter=True, pretrain_size=224, mlp_ratio=4.0)
        s |= dict(stem_width=64) | self.settings(arch, given)
        dim, rate = s["dim"], s["drop_path_rate"]
        check_heads(int(dim * s["deform_ratio"]), s["deform_heads"])

        def make_block(number: int, rate: float) -> nn.Module:
            last = (number + 1) % (s["depth"] // 4) == 0
            attention = MapAttention(dim, s["num_heads"], None if last else s["window"])
            mlp = FeedForward(dim, int(dim * s["mlp_ratio"]))
            norms = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
            return PreNormBlock(norms[0], attention, norms[1], mlp, rate, LayerScale(dim, 1.0), LayerScale(dim, 1.0))

        super().__init__(
            make_block,
            dim=dim,
            depth=s["depth"],
            slots=1,
            pretrain_size=s["pretrain_size"],
            drop_path_rate=rate,
            out_indices=out_indices,
            with_cp=with_cp,
        )
        self.add_each_quarter = s["add_each_quarter"]
        self.spm = Stem(s["stem_width"], dim, finest=0 in self.out_indices)
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        settings = dim, s["deform_heads"], s["deform_ratio"], int(dim * s["mrfp_ratio"]), rate
        self.interactions = nn.ModuleList(Interaction(*settings, extra=4 if i == 3 else 0) for i in range(4))
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2) if 0 in self.out_indices else None
        for i in self.out_indices:
            self.add_module(f"norm{i + 1}", nn.BatchNorm2d(dim))
        for part in (self.spm, self.interactions):
            part.apply(_initialise)
        self._freeze(frozen_stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[-2:]
        if height % 32 or width % 32:
            x = F.pad(x, (0, -width % 32, 0, -height % 32))
        maps, quarters = self.interact(x)
        outputs = []
        for i, stride in ((i, self.strides[i]) for i in self.out_indices):
            features = quarters[i if self.add_each_quarter else 3].permute(0, 3, 1, 2)
            out = self.get_submodule(f"norm{i + 1}")(maps[i] + resize(features, maps[i].shape[-2:]))
            outputs.append(out[..., : -(-height // stride), : -(-width // stride)])
        return tuple(outputs)

    def interact(self, x: Tensor) -> tuple[list[Tensor | None], list[Tensor]]:
        """Images -> the pyramid's maps (N, C, h, w) and the ViT's (N, H, W, C) after each quarter."""
        c1, *levels = self.run_stage(self.spm, x)
        shapes: Shapes = tuple(tuple(level.shape[-2:]) for level in levels)
        c = to_tokens([level + embed[:, None, None] for level, embed in zip(levels, self.level_embed)])
        x = self.embed(x)
        quarters = []
        for stage, interaction in enumerate(self.interactions):
            c = add_to_middle(self.run_stage(interaction.mrfp, c, shapes), x, shapes)
            x = self.run_stage(interaction.cti_tov, x, c, shapes)
            for block in self.stage_blocks(stage):
                x = self.run_stage(block, x)
            for module in (interaction.cti_toc, *interaction.extra_CTIs):
                c = self.run_stage(module, x, c, shapes)
            quarters.append(x)
        levels = to_maps(c, shapes)
        return [None if c1 is None else c1 + self.up(levels[0]), *levels], quarters

    def no_weight_decay(self) -> set[str]:
        scales = {name for name, _ in self.named_parameters() if name.endswith(".gamma")}
        return super().no_weight_decay() | scales | {"level_embed"}

    def dense_only(self) -> set[str]:
        """All that is not the ViT's, and the ViT's layer scales."""
        own = re.compile(r"(patch_embed|pos_embed|blocks\.\d+\.(?!scale))")
        return {name for name in self.state_dict() if not own.match(name)}

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the paper's repository, or of a plain ViT that it starts from -> ours."""
        state_dict = {key.removeprefix("backbone."): value for key, value in state_dict.items()}
        if any(key.startswith("spm.") for key in state_dict):
            return {_rename(key): value for key, value in state_dict.items()}
        renamed = {re.sub(r"\.ls([12])\.gamma$", r".scale\1.gamma", key): v for key, v in super().convert(state_dict).items()}
        return {key: value for key, value in renamed.items() if key != "cls_token"}


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out), linear layers N(0, 0.02) truncated, but those of the deformable attention."""
    init_by_fan_out(module)
    if isinstance(module, MSDeformAttn):  # after its own layers, which `apply` visits first
        module.reset_parameters()


def _rename(key: str) -> str:
    parts = {"0": "conv", "1": "norm"}
    key = re.sub(r"^spm\.stem\.(\d)\.", lambda m: f"spm.stem.{int(m[1]) // 3}.{parts[str(int(m[1]) % 3)]}.", key)
    key = re.sub(r"^(spm\.conv\d)\.([01])\.", lambda m: f"{m[1]}.{parts[m[2]]}.", key)
    key = re.sub(r"\.gamma([12])$", r".scale\1.gamma", key).replace(".cti_tov.gamma", ".cti_tov.scale.gamma")
    key = re.sub(
        r"\.dwconv\.dwconv([1-6])\.",
        lambda m: f".levels.{(int(m[1]) - 1) // 2}.conv{3 if int(m[1]) % 2 else 5}.",
        key,
    )
    key = re.sub(r"\.dwconv\.bn([123])\.", lambda m: f".levels.{int(m[1]) - 1}.norm.", key)
    return key.replace(".dwconv.dwconv.", ".dwconv.")
