"""The list of backbones: what each is, what it costs, and where it comes from."""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import torch

from mmvit.layers.flops import count_flops
from mmvit.weights import catalogue as published

from .base import Backbone, create_backbone, find_backbone, named_variants

COSTS = Path(__file__).parent / "costs.json"  # what `measure` returns for each backbone, made by tools/list_backbones.py
SIDE = 224  # of the picture that FLOPs belong to


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without building it.

    Attributes:
        name: what `create_backbone` takes, ``<family>_<variant>``.
        family, variant: its parts.
        parameters: number of parameters with the default outputs, without a classifier.
        flops: floating-point operations (two per multiply-add) of this code's matrix products, attention and convolutions for
            one picture of 224 x 224 pixels. Papers that print "FLOPs" mostly count multiply-adds: half as many.
        strides, channels: of the default outputs, fine to coarse.
        paper, arxiv: title and arXiv number of the paper that describes the network; empty where its file names none.
        weights: ``yes`` if ``create_backbone(name, pretrained=True)`` downloads classification weights, ``page`` if only a web
            page, which the error names, leads to them, ``none`` if none are published.
    """

    name: str
    family: str
    variant: str
    parameters: int
    flops: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    paper: str
    arxiv: str
    weights: Literal["yes", "page", "none"]

    @property
    def debug(self) -> bool:
        """Whether it is one of the tiny variants that tests run."""
        return self.variant.endswith("debug")


@overload
def list_backbones(pattern: str = "*", details: Literal[False] = False) -> list[str]: ...


@overload
def list_backbones(pattern: str = "*", *, details: Literal[True]) -> list[BackboneInfo]: ...


def list_backbones(pattern: str = "*", details: bool = False) -> list[str] | list[BackboneInfo]:
    """The names that `create_backbone` knows and that match the shell-style `pattern`, sorted; none if nothing matches.

    With `details`, a `BackboneInfo` of each in place of its name.
    """
    names = sorted(name for name in named_variants() if fnmatch.fnmatch(name, pattern))
    return [backbone_info(name) for name in names] if details else names


def backbone_info(name: str) -> BackboneInfo:
    """What is known of backbone `name`. One that is not part of mmvit is built without memory and counted.

    Raises:
        UserError: there is no such backbone.
    """
    cls, variant = find_backbone(name)
    name = f"{cls.family}_{variant}"
    cost = costs().get(name) or measure(name)
    return BackboneInfo(
        name,
        cls.family,
        variant,
        cost["parameters"],
        cost["flops"],
        tuple(cost["strides"]),
        tuple(cost["channels"]),
        paper_title(cls),
        cls.arxiv,
        _weights(name),
    )


@lru_cache(maxsize=1)
def costs() -> dict[str, dict[str, Any]]:
    """The recorded results of `measure`, by name."""
    return json.loads(COSTS.read_text(encoding="utf-8"))


def measure(name: str) -> dict[str, Any]:
    """Parameters, FLOPs, strides and channels of backbone `name` with its default outputs."""
    try:
        return _measure(name, torch.device("meta"))
    except RuntimeError:  # something in it needs real numbers
        return _measure(name, torch.device("cpu"))


@torch.no_grad()
def _measure(name: str, device: torch.device) -> dict[str, Any]:
    backbone = build(name, device).eval()
    image = torch.zeros(1, 3, SIDE, SIDE, device=device)
    return {**size(backbone), "flops": count_flops(lambda: backbone(image))}


def build(name: str, device: torch.device) -> Backbone:
    """Backbone `name` with its default outputs; on the device ``meta`` it takes no memory."""
    with device:
        return create_backbone(name)


def size(backbone: Backbone) -> dict[str, Any]:
    """Parameters, strides and channels of `backbone`."""
    channels, strides = zip(*backbone.feature_info, strict=True)
    return dict(parameters=sum(p.numel() for p in backbone.parameters()), strides=list(strides), channels=list(channels))


def paper_title(cls: type[Backbone]) -> str:
    """The title that the docstring of the family's file (or of a base's) gives with the number ``cls.arxiv``."""
    for base in cls.__mro__ if cls.arxiv else ():
        text = " ".join((sys.modules[base.__module__].__doc__ or "").split())
        if found := re.search(rf'"([^"]+)" \([^()]*arXiv {re.escape(cls.arxiv)}\)', text):
            return found[1]
    return ""


def _weights(name: str) -> Literal["yes", "page", "none"]:
    entry = published.published_backbone(name)
    if entry is None:
        return "none"
    return "yes" if entry.url else "page"
