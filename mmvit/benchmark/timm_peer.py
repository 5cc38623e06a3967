"""timm's implementations of our backbones, with the same weights where its names can be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.backbones import Backbone
from mmvit.check_golden import fill_values

#: (our name, timm's), regular expressions; a backbone that fits none has no peer.
NAMES = (
    (r"swin_(tiny|small|base|large)", r"swin_\1_patch4_window7_224"),
    (r"swin_(base|large)_window12", r"swin_\1_patch4_window12_384"),
    (r"(convnext_(?:tiny|small|base|large|xlarge))", r"\1"),
    (r"(pvt_v2_b\d(?:_li)?)", r"\1"),
    (r"(poolformer_[sm]\d\d)", r"\1"),
    (r"(efficientformer_l\d)", r"\1"),
    (r"(efficientformerv2_(?:s\d|l))", r"\1"),
    (r"(nextvit_(?:small|base|large))", r"\1"),
    (r"(shvit_s\d)", r"\1"),
    (r"hgnetv2_l", "hgnetv2_b4"),
    (r"hgnetv2_x", "hgnetv2_b5"),
    (r"hgnetv2_h", "hgnetv2_b6"),
    (r"resnet_(50|101)", r"resnet\1"),
    (r"presnet_(18|34|50|101)vd", r"resnet\1d"),
    (r"vit_deit_(tiny|small|base)", r"deit_\1_patch16_224"),
    (r"vit_deit_(tiny|small|base)_distilled", r"deit_\1_distilled_patch16_224"),
    (r"vit_deit_base_384", "deit_base_patch16_384"),
    (r"vit_deit_base_distilled_384", "deit_base_distilled_patch16_384"),
    (r"vit_large_patch16", "vit_large_patch16_224"),
)

#: Family -> (timm's entry, the papers' repository's), regular expressions in order of application.
_ENTRIES: dict[str, tuple[tuple[str, Any], ...]] = {
    "swin": ((r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),),
    "convnext": (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc", ".pwconv"),
    ),
    "pvt_v2": (
        (r"^patch_embed\.", "patch_embed1."),
        (r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
    ),
    "poolformer": (
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
        (r"^stages\.(\d)\.downsample\.conv\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
        (r"\.layer_scale(\d)\.scale$", r".layer_scale_\1"),
    ),
    "efficientformer": (
        (r"^stem\.(conv|norm)(\d)\.", lambda m: f"patch_embed.{3 * int(m[2]) - 3 + (m[1] == 'norm')}."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
        (r"^stages\.(\d)\.downsample\.conv\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
        (r"^stages\.(\d)\.downsample\.norm\.", lambda m: f"network.{2 * int(m[1]) - 1}.norm."),
        (r"\.ls(\d)\.gamma$", r".layer_scale_\1"),
    ),
}
_AGREES = 1e-3


def import_timm() -> ModuleType | str:
    """timm, or why it cannot be imported."""
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # it needs torchvision, which fails in its own ways
        return f"{type(error).__name__}: {error}"
    return timm


def timm_name(name: str) -> str | None:
    """timm's name of our backbone `name`; None where it has none."""
    for ours, theirs in NAMES:
        found = re.fullmatch(ours, name)
        if found:
            return found.expand(theirs)
    return None


@dataclass
class Peer:
    """timm's backbone `name`; `gap`: largest relative difference of its outputs to ours, None where the weights differ."""

    name: str
    run: Callable[[Tensor], Any]
    gap: float | None


def create_peer(timm: ModuleType, name: str, ours: Backbone, image: Tensor) -> Peer | None:
    """timm's implementation of our backbone `name` for images of the size of `image`; None where timm has none.

    Where its state dict can be brought under our names, `ours` gets its weights, and the outputs are compared, up to the
    norms that ours have. (Swin's differ: timm does not shift windows that cover the map, and rolls before it pads, the papers'
    dense networks the other way round.)

    Raises:
        RuntimeError, AssertionError, TypeError: timm's network does not take this size.
    """
    theirs = timm_name(name)
    if theirs is None:
        return None
    model = _create(timm, theirs, tuple(image.shape[-2:])).eval().requires_grad_(False)
    state = {
        k: torch.from_numpy(fill_values(k, v.shape)).to(v.dtype) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.to(image.device)

    def run(images: Tensor) -> list[Tensor]:
        return model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW", norm=False)

    wanted = run(image)
    named, ordered = _by_name(ours, state), _by_order(ours, state)
    if named is not None:
        ours.load_state_dict(named, strict=False)
        return Peer(theirs, run, _gap(ours(image), wanted))
    if ordered is not None:
        fresh = {k: v.clone() for k, v in ours.state_dict().items()}
        ours.load_state_dict(ordered, strict=False)
        gap = _gap(ours(image), wanted)
        if gap < _AGREES:  # the order was the same
            return Peer(theirs, run, gap)
        ours.load_state_dict(fresh)
    return Peer(theirs, run, None)


def _create(timm: ModuleType, name: str, size: tuple[int, int]) -> torch.nn.Module:
    for settings in ({"img_size": size, "strict_img_size": False}, {"img_size": size}, {}):
        try:
            return timm.create_model(name, num_classes=0, **settings)
        except TypeError:  # families take different arguments
            continue
    raise TypeError(f"timm.create_model({name!r}) does not take img_size")


def _needed(model: Backbone) -> dict[str, Tensor]:
    """Entries that a classifier's checkpoint must have."""
    optional = model.dense_only()
    return {k: v for k, v in model.state_dict().items() if k not in optional and not k.endswith("num_batches_tracked")}


def _by_name(model: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """timm's entries under the papers' names, then ours."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in _ENTRIES.get(model.family, ()):
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    try:
        found = model.fit_tables(model.convert(renamed))
    except (KeyError, IndexError, AttributeError, ValueError, RuntimeError, TypeError):  # names that `convert` cannot read
        return None
    needed = _needed(model)
    fits = all(k in found and found[k].shape == v.shape for k, v in needed.items())
    return {k: found[k] for k in needed} if fits else None


def _by_order(model: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """timm's entries in their order, where all shapes fit: ports mostly keep the order of the papers' code."""
    values = [v for k, v in state.items() if v.is_floating_point()]
    needed = {k: v for k, v in _needed(model).items() if v.is_floating_point()}
    fits = len(values) >= len(needed) and all(a.numel() == b.numel() for a, b in zip(needed.values(), values))
    return {k: value.reshape(own.shape) for (k, own), value in zip(needed.items(), values)} if fits else None


def _gap(found: tuple[Tensor, ...], wanted: list[Tensor]) -> float:
    """Largest relative difference of our maps to timm's, as they are or normalised over the channels."""
    worst = 0.0
    for ours in found:
        shaped = [theirs for theirs in wanted if theirs.shape == ours.shape]
        forms = [form for theirs in shaped for form in (theirs, *_normalised(theirs))]
        worst = max(worst, min((float((ours - x).abs().max() / ours.abs().max()) for x in forms), default=float("inf")))
    return worst


def _normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, C, h, w) with the norms that dense networks put behind a backbone, at their initial values."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2), F.group_norm(x, 1)
