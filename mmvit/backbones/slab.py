"""SLAB: Swin and PVT with batch normalisation that training fades in (PRepBN), and with simplified linear attention (SLA).

Paper: "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization"
(arXiv 2405.11582). `mmvit.layers.reparam.deploy` folds the batch norms into their neighbours.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.layers.position import resize_grid
from mmvit.layers.recompute import recomputing
from mmvit.layers.reparam import fold_after, fold_before
from mmvit.registry import MODELS

from .base import Backbone
from .pvt import PVT
from .swin import BiasedWindowAttention, Swin, WindowAttention


class RepBN(nn.Module):
    """Batch normalisation with a shortcut, BN(x) + alpha * x (equation 4 of the paper). (..., C) -> (..., C).

    Statistics are over all but the channels. In evaluation it is affine: see `affine`.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(dim)

    def affine(self) -> tuple[Tensor, Tensor]:
        """a and b (C) of the function ``a * x + b`` that it is in evaluation."""
        scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
        return scale + self.alpha, self.bn.bias - scale * self.bn.running_mean

    def forward(self, x: Tensor) -> Tensor:
        if self.bn.training:
            return self.bn(x.flatten(0, -2)).view_as(x) + self.alpha * x
        a, b = self.affine()
        return torch.addcmul(b, a, x)


class PRepBN(nn.Module):
    """Layer normalisation that training fades into `RepBN` (equations 2, 3 of the paper). (..., C) -> (..., C).

    In training ``f * LN(x) + (1 - f) * RepBN(x)`` with f = iter / total_step; each forward then takes one from `iter`, down to
    0. While `warm` is above 0, it is counted down instead and only LN is used. In evaluation: RepBN. The counters are buffers,
    so that a resumed training goes on where it stopped.

    Args:
        dim: channels C.
        eps: of the layer normalisation.
        has_warm: keep the counter `warm` (the paper's PVT has it).
    """

    def __init__(self, dim: int, eps: float = 1e-5, has_warm: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = RepBN(dim)
        self.register_buffer("iter", torch.tensor(0))
        self.register_buffer("total_step", torch.tensor(1))
        self.register_buffer("warm", torch.tensor(0) if has_warm else None)
        self._fade: Tensor | None = None  # of the last forward, which the backward pass may repeat
        self._warming = False  # whether `warm` may be above 0: looking at it would wait for the device

    def start(self, steps: int) -> None:
        """Fade during the next `steps` forwards."""
        self.iter.fill_(steps)
        self.total_step.fill_(max(steps, 1))

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._warming = self.warm is not None and bool(self.warm > 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm2(x)
        if not recomputing():
            self._fade = self._count(torch.promote_types(x.dtype, torch.float32))
        if self._fade is None:
            return self.norm1(x)
        return self._fade * self.norm1(x) + (1 - self._fade) * self.norm2(x)

    @torch.no_grad()
    def _count(self, dtype: torch.dtype) -> Tensor | None:
        """The share of LN in this forward, None for LN alone; counts it."""
        if self._warming and self.warm > 0:
            self.warm.sub_(1)
            return None
        fade = self.iter.to(dtype) / self.total_step
        self.iter.sub_(1).clamp_(min=0)
        return fade


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``q (sum k^T v) / (q sum k + 1e-6)`` of non-negative q, k, at least in single precision. All (B, heads, N, d)."""
    dtype = query.dtype
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (t.to(torch.promote_types(dtype, torch.float32)) for t in (query, key, value))
        total = query @ key.sum(-2).unsqueeze(-1) + 1e-6
        return (query @ (key.transpose(-2, -1) @ value) / total).to(dtype)


def simplified_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, position: Tensor, conv: nn.Conv2d, size: tuple[int, int]
) -> Tensor:
    """SLA (section 3.2 of the paper) on maps of sides `size`: q, k, v (B, N, C) -> (B, N, C).

    Keys get the `position` encoding (1, N, C), queries and keys a ReLU; `conv`, a depthwise convolution of the values whose d
    kernels all heads share, is added.
    """
    dim = conv.out_channels
    query, key, value = (
        t.unflatten(-1, (-1, dim)).transpose(1, 2) for t in (F.relu(query), F.relu(key + position), value)
    )  # (B, heads, N, d)
    local = conv(value.transpose(-2, -1).reshape(-1, dim, *size))  # (B * heads, d, h, w)
    out = linear_attention(query, key, value) + local.view(*value.shape[:2], dim, -1).transpose(-2, -1)
    return out.transpose(1, 2).flatten(2)


def _shared_conv(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 5, padding=2, groups=dim)


class WindowLinearAttention(WindowAttention):
    """SLA inside windows. (B, H, W, C) -> (B, H, W, C). Nothing is masked, also where the map is rolled or padded."""

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool):
        super().__init__(dim, num_heads, window, shifted)
        self.positional_encoding = nn.Parameter(torch.zeros(1, window * window, dim))
        self.dwc = _shared_conv(dim // num_heads)

    def attend(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        return simplified_linear_attention(*qkv.chunk(3, -1), self.positional_encoding, self.dwc, self.window)


class LinearAttention(nn.Module):
    """SLA over a whole map. (B, H, W, C) -> (B, H, W, C).

    The position encoding has `side` x `side` entries and is bilinearly resized to other maps (the paper's has one size).
    """

    def __init__(self, dim: int, num_heads: int, side: int):
        super().__init__()
        self.side = side
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, dim))
        self.dwc = _shared_conv(dim // num_heads)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        position = resize_grid(self.positional_encoding.unflatten(1, (self.side, self.side)), *size).flatten(1, 2)
        tokens = x.flatten(1, 2)
        key, value = self.kv(tokens).chunk(2, -1)
        out = simplified_linear_attention(self.q(tokens), key, value, position, self.dwc, size)
        return self.proj(out).view(x.shape)


class FadingNorms(Backbone):
    """Settings of a network of `PRepBN`.

    Args:
        fade_steps: training forwards until only batch normalisation is left (the paper's: 300000, and 60000 for SLAB-Swin on
            ImageNet). Checkpoints bring their own counters.
        norm_eval: batch normalisations use their running statistics also in training, as in the paper's detectors.
        settings: those of the network without PRepBN.
    """

    arxiv = "2405.11582"

    def __init__(self, arch: str, *, fade_steps: int = 300_000, norm_eval: bool = False, **settings):
        super().__init__(arch, **settings)
        self.norm_eval = norm_eval
        for module in self.modules():
            if isinstance(module, PRepBN):
                module.start(fade_steps)
        self.train()

    def no_weight_decay(self) -> set[str]:
        own = {n for n, _ in self.named_parameters() if n.endswith((".alpha", ".positional_encoding"))}
        return super().no_weight_decay() | own

    def train(self, mode: bool = True) -> FadingNorms:
        """Frozen norms stay in evaluation: their statistics and counters stand still."""
        super().train(mode)
        for module in self.modules():
            frozen = isinstance(module, PRepBN) and not module.norm2.alpha.requires_grad
            if frozen or (self.norm_eval and isinstance(module, RepBN)):
                module.eval()
        return self


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """a and b of ``a * x + b``, which a `PRepBN` or `RepBN` is in evaluation."""
    return (norm.norm2 if isinstance(norm, PRepBN) else norm).affine()


class MergingSwin(Swin):
    """Swin whose norms, but those of the outputs, can be folded into the layers around them."""

    arxiv = "2405.11582"

    def merge(self) -> None:
        """Fold the norms (evaluation only; see `layers.reparam.deploy`). Attention still sees the same padded tokens."""
        if isinstance(self.patch_embed.norm, nn.Identity):
            return
        fold_after(self.patch_embed.proj, *affine_of(self.patch_embed.norm))
        self.patch_embed.norm = nn.Identity()
        for layer in self.layers:
            for block in layer.blocks:
                block.attn.padding = block.attn.qkv.bias.clone()  # what the zeros after norm1 become
                fold_before(block.attn.qkv, *affine_of(block.norm1))
                fold_before(block.mlp.fc1, *affine_of(block.norm2))
                block.norm1, block.norm2 = nn.Identity(), nn.Identity()
            if hasattr(layer, "downsample"):
                fold_before(layer.downsample.reduction, *affine_of(layer.downsample.norm))
                layer.downsample.norm = nn.Identity()


@MODELS.register_module()
class SwinRepBN(MergingSwin):
    """Swin with `RepBN` in place of all norms but those of the outputs: what `SwinPRepBN` is after training."""

    variants = {
        "t_prepbn_merge": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        "s_prepbn_merge": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    }

    def make_norm(self, dim: int) -> nn.Module:
        return RepBN(dim)

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a `SwinPRepBN` fit, too."""
        other = re.compile(r"\.norm\d?\.(norm1\.\w+|iter|total_step|warm)$")
        halves = {re.sub(r"(\.norm\d?)\.norm2\.", r"\1.", k): v for k, v in state_dict.items() if not other.search(k)}
        return super().convert(halves)


@MODELS.register_module()
class SwinPRepBN(FadingNorms, MergingSwin):
    """Swin with `PRepBN` in place of all norms but those of the outputs."""

    variants = {
        "t_prepbn": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.1),
        "s_prepbn": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        "prepbn_debug": Swin.variants["debug"],
    }

    def make_norm(self, dim: int) -> nn.Module:
        return PRepBN(dim)


@MODELS.register_module()
class SlabSwin(SwinPRepBN):
    """Swin with `PRepBN`, and with SLA in wide windows in the first two stages."""

    family = "slab"
    variants = {
        "swin_t": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window=(56, 28, 7, 7), drop_path_rate=0.1),
        "swin_s": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window=(56, 28, 7, 7)),
        "swin_b": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=(56, 28, 7, 7)),
        "swin_debug": {**Swin.variants["debug"], "window": (8, 4, 4, 4)},
    }

    def make_attention(self, stage: int, dim: int, num_heads: int, window: int, shifted: bool) -> nn.Module:
        kind = WindowLinearAttention if stage < 2 else BiasedWindowAttention
        return kind(dim, num_heads, window, shifted)

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """Position encodings of other windows are resized, too."""
        if name.endswith(".positional_encoding") and value.shape[-1] == own.shape[-1]:
            old, new = (round(t.shape[1] ** 0.5) for t in (value, own))
            return resize_grid(value.unflatten(1, (old, old)), new, new).flatten(1, 2)
        return super().fit_table(name, value, own)


@MODELS.register_module()
class PVTPRepBN(FadingNorms, PVT):
    """PVT (v1) with `PRepBN` in place of all norms."""

    inner_eps = 1e-6
    class_slot = False
    variants = {
        "t_prepbn": {**PVT.variants["tiny"], "drop_path_rate": 0.0},
        "s_prepbn": {**PVT.variants["small"], "drop_path_rate": 0.1},
        "m_prepbn": {**PVT.variants["medium"], "drop_path_rate": 0.3},
        "prepbn_debug": PVT.variants["debug"],
    }

    def make_norm(self, dim: int, eps: float) -> nn.Module:
        return PRepBN(dim, eps, has_warm=True)

    def merge(self) -> None:
        """Fold the norms into the layers around them (evaluation only; see `layers.reparam.deploy`)."""
        for stage in range(1, 5):
            embed = self.get_submodule(f"patch_embed{stage}")
            if isinstance(embed.norm, nn.Identity):
                return
            fold_after(embed.proj, *affine_of(embed.norm))
            embed.norm = nn.Identity()
            for block in self.get_submodule(f"block{stage}"):
                _merge_attention(block.attn, affine_of(block.norm1))
                fold_before(block.mlp.fc1, *affine_of(block.norm2))
                block.norm1, block.norm2 = nn.Identity(), nn.Identity()


def _merge_attention(attn: nn.Module, affine: tuple[Tensor, Tensor]) -> None:
    """Fold the norm before an attention with ``q``, ``kv`` and perhaps a reduction ``sr``, and the norm after the latter."""
    reduction = getattr(attn, "sr", None)
    if reduction is not None:
        fold_after(reduction, *affine_of(attn.norm))
        attn.norm = nn.Identity()
    fold_before(attn.q, *affine)
    fold_before(attn.kv if reduction is None else reduction, *affine)


@MODELS.register_module()
class SlabPVT(PVTPRepBN):
    """PVT with `PRepBN` and SLA over the whole map in all stages."""

    family = "slab"
    variants = {
        "pvt_t": PVTPRepBN.variants["t_prepbn"],
        "pvt_s": PVTPRepBN.variants["s_prepbn"],
        "pvt_m": PVTPRepBN.variants["m_prepbn"],
        "pvt_debug": PVT.variants["debug"],
    }

    def make_attention(self, stage: int, dim: int, num_heads: int, reduction: int) -> nn.Module:
        return LinearAttention(dim, num_heads, self.pretrain_size // self.strides[stage])
