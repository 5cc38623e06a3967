"""The index of published checkpoints (`index.json`): addresses, published figures, sources."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmvit.errors import UserError, did_you_mean

FILES = Path(__file__).parent / "files"  # checkpoints that are part of the package


@dataclass(frozen=True)
class Published:
    """One published checkpoint. Figures are the authors', in percent on val sets; None where they gave none.

    Attributes:
        name: our name, for example ``rtdetr_r50_obj365`` or ``segformer_mit_b0_cityscapes``.
        architecture: the name that `mmvit.create_model` knows, for example ``rtdetr_r50``.
        task: ``detection``, ``semantic``, ``instance`` or ``panoptic``.
        dataset: what it was trained and measured on: ``coco``, ``ade20k`` or ``cityscapes``.
        url: address of the file (``.pkl``: a pickle of arrays, of which `load_checkpoint` builds nothing else); None for a
            checkpoint that is part of the package, or that only a web page leads to.
        sha256: its SHA-256, or the first digits of it, where the authors publish them.
        page: web page from which the file can be had by hand.
        packaged: file name within the package; None for a checkpoint that is downloaded.
        made_by: the command that makes the packaged file.
        official_name: the authors' name for it.
        pretrain: data set that the detector was trained on before COCO, or a segmenter's backbone before its training.
        schedule: the authors' name of the training length (``6x`` is 72 epochs, ``160k`` counts iterations).
        input_size: side of the square input that a detector's figures belong to.
        crop: training crop of a segmenter, height x width.
        box_ap, box_ap50: AP of the authors' main table.
        box_ap_pytorch_table, box_ap50_pytorch_table: AP of the authors' PyTorch table, where `url` was converted from Paddle.
        mask_ap, pq: AP of masks (of Cityscapes its instance AP), panoptic quality.
        miou_ss, miou_ms: mIoU at a single scale, and over several scales with flips.
        params_m, flops_g: parameters in millions, floating point operations in 1e9, as the authors count them.
        t4_fps: images per second on one T4, batch 1, TensorRT, fp16.
        backbone: name in the index's ``backbones`` of the weights that its training started from.
        note: what else is worth knowing.
        source: paper, arXiv number, code, commit and licence.
    """

    name: str
    architecture: str
    task: str = "detection"
    dataset: str | None = None
    url: str | None = None
    sha256: str | None = None
    page: str | None = None
    packaged: str | None = None
    made_by: str | None = None
    official_name: str | None = None
    pretrain: str | None = None
    schedule: str | None = None
    input_size: int | None = None
    crop: str | None = None
    box_ap: float | None = None
    box_ap50: float | None = None
    box_ap_pytorch_table: float | None = None
    box_ap50_pytorch_table: float | None = None
    mask_ap: float | None = None
    pq: float | None = None
    miou_ss: float | None = None
    miou_ms: float | None = None
    params_m: float | None = None
    flops_g: float | None = None
    t4_fps: float | None = None
    backbone: str | None = None
    note: str | None = None
    source: dict[str, str] | None = None

    @property
    def file_name(self) -> str:
        """Name of the file in the weight cache, or in the package."""
        return self.packaged or (self.url.rsplit("/", 1)[-1] if self.url else f"{self.name}.pth")


@dataclass(frozen=True)
class PublishedBackbone:
    """The published classification weights of a backbone.

    Attributes:
        name: our name: the backbone's, with ``_22k`` where there are weights of ImageNet-1K, too, and ``_22k_1k_384`` for those
            that were then trained on ImageNet-1K at 384 x 384.
        url: address of the file; None where only a web page leads to it.
        sha256: its SHA-256, or the first digits of it, where the authors publish them.
        page: web page from which the file can be had by hand.
        pretrain: ``ImageNet-1K`` or ``ImageNet-22K``.
        input_size: side of the square input.
        imagenet_top1: top-1 accuracy of the authors' table, percent.
        params_m, flops_g: parameters in millions, multiply-adds in 1e9, with the classifier.
        source: paper, arXiv number, code, commit and licence.
    """

    name: str
    url: str | None = None
    sha256: str | None = None
    page: str | None = None
    pretrain: str | None = None
    input_size: int | None = None
    imagenet_top1: float | None = None
    params_m: float | None = None
    flops_g: float | None = None
    source: dict[str, str] | None = None

    @property
    def file_name(self) -> str:
        """Name of the file in the weight cache: the address's own, ours where that ends in none (``.../?dl=1``)."""
        return (self.url or "").partition("?")[0].rpartition("/")[2] or f"{self.name}.pth"


@lru_cache(maxsize=1)
def _raw() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "index.json").read_text(encoding="utf-8"))


def _entry(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "source": _raw()["sources"].get(raw.get("source"))}


@lru_cache(maxsize=1)
def index() -> dict[str, Published]:
    """All published checkpoints by name."""
    return {name: Published(name=name, **_entry(entry)) for name, entry in _raw()["models"].items()}


@lru_cache(maxsize=1)
def backbones() -> dict[str, PublishedBackbone]:
    """All published backbone weights by name."""
    return {name: PublishedBackbone(name=name, **_entry(entry)) for name, entry in _raw()["backbones"].items()}


def published_backbone(name: str) -> PublishedBackbone | None:
    """The weights of backbone `name` (underscores and case do not matter); None if the index has none."""
    plain = {key.replace("_", ""): entry for key, entry in backbones().items()}
    return plain.get(name.replace("_", "").lower())


def backbone_url(name: str) -> str | None:
    """Address of the weights of backbone `name` (underscores and case do not matter); None if the index knows none."""
    entry = published_backbone(name)
    return entry.url if entry else None


def published(name: str) -> Published:
    """The published checkpoint `name` (or one of its aliases, such as ``rtdetrv2_s``). UserError if there is none."""
    entries, aliases = index(), _raw()["aliases"]
    entry = entries.get(aliases.get(name, name))
    if entry is None:
        raise UserError(
            f"no published weights are called {name!r}.{did_you_mean(name, [*entries, *aliases])} "
            "`mmvit.weights.index()` holds all names."
        )
    return entry


def is_published(name: str) -> bool:
    """Whether `name` (or the checkpoint that it is an alias of) is in the index."""
    return _raw()["aliases"].get(name, name) in index()
