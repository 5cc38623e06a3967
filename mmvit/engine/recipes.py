"""What a recipe changes for a backbone: learning rates, stochastic depth, crop."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from mmengine.config import Config

from mmvit.engine.arguments import accepted_arguments
from mmvit.errors import UserError, did_you_mean

KEY = "backbone_recipes"
SIZE = "size"  # in a recipe: the crop, as --size gives it
#: settings of a backbone that mean the same to another one
_COMMON = ("drop_path_rate", "with_cp")


def backbone_of(cfg: Config) -> str | None:
    """Name of the backbone that a config states."""
    backbone = cfg.model.get("backbone")
    return backbone.get("name") if isinstance(backbone, dict) else backbone


def set_backbone(cfg: Config, name: str) -> None:
    """Put backbone `name` in place of the config's; settings that mean the same to it stay."""
    from mmvit.backbones import find_backbone, list_backbones

    names = list_backbones()
    if name not in names:
        raise UserError(
            f"There is no backbone {name!r}.{did_you_mean(name, names)} `mmvit.list_backbones()` lists all of them."
        )
    before = cfg.model.get("backbone")
    takes = accepted_arguments(find_backbone(name)[0]) or set(_COMMON)
    kept = {key: before[key] for key in _COMMON if key in before and key in takes} if isinstance(before, dict) else {}
    cfg.model.pop("backbone", None)
    cfg.model.backbone = dict(name=name, **kept) if kept else name


def apply_backbone_recipe(cfg: Config) -> int | None:
    """Change `cfg` by what its ``backbone_recipes`` say of its backbone; returns the crop of the last one that names a size.

    ``backbone_recipes = {"convnext_*": dict(optim_wrapper=dict(optimizer=dict(lr=1e-4)), ...), "*_large": dict(size=640)}``:
    shell-style patterns of backbone names; all that match are applied in order. A recipe holds config keys, which are merged
    into the config (lists are replaced), and ``size``. The table is then taken out: what is left is the config of one run.
    """
    recipes = cfg._cfg_dict.pop(KEY, None) or {}
    name, size = backbone_of(cfg), None
    for pattern, changes in recipes.items():
        if name is not None and fnmatchcase(name, pattern):
            size = changes.get(SIZE, size)
            _merge(cfg, changes)
    return size


def merged_recipes(cfg: Config) -> Iterator[tuple[str, Config]]:
    """Each pattern of ``backbone_recipes`` with the config that it makes."""
    for pattern, changes in (cfg.get(KEY) or {}).items():
        if not isinstance(changes, dict):
            raise UserError(f"Config key {KEY}[{pattern!r}] must be a dict of config keys, not {changes!r}.")
        copy = Config({key: value for key, value in cfg._cfg_dict.to_dict().items() if key != KEY})
        _merge(copy, changes)
        yield pattern, copy


def check_patterns(cfg: Config) -> None:
    """UserError for a pattern that fits no backbone."""
    from mmvit.backbones import list_backbones

    names = list_backbones()
    for pattern in cfg.get(KEY) or {}:
        if not any(fnmatchcase(name, pattern) for name in names):
            families = {name.split("_")[0] + "_*" for name in names}
            raise UserError(f"Config key {KEY}[{pattern!r}] fits no backbone.{did_you_mean(pattern, families)}")


def _merge(cfg: Config, changes: dict[str, Any]) -> None:
    changes = {key: value for key, value in changes.items() if key != SIZE}
    if isinstance(changes.get("model", {}).get("backbone"), dict) and isinstance(cfg.model.get("backbone"), str):
        cfg.model.backbone = dict(name=cfg.model.backbone)
    cfg.merge_from_dict(changes)
