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
    """One published checkpoint. Figures are the authors' (COCO val2017, AP in percent); None where they gave none.

    Attributes:
        name: our name, for example ``rtdetr_r50_obj365``.
        architecture: the name that `mmvit.create_model` knows, for example ``rtdetr_r50``.
        url: address of the file; None for a checkpoint that is part of the package.
        packaged: file name within the package; None for a checkpoint that is downloaded.
        made_by: the command that makes the packaged file.
        official_name: the authors' name for it.
        pretrain: data set that the detector was trained on before COCO.
        schedule: the authors' name of the training length (``6x`` is 72 epochs).
        input_size: side of the square input that the figures belong to.
        box_ap, box_ap50: AP of the authors' main table.
        box_ap_pytorch_table, box_ap50_pytorch_table: AP of the authors' PyTorch table, where `url` was converted from Paddle.
        params_m, flops_g: parameters in millions, floating point operations in 1e9.
        t4_fps: images per second on one T4, batch 1, TensorRT, fp16.
        backbone: name in the index's ``backbones`` of the weights that its training started from.
        note: what else is worth knowing.
        source: paper, arXiv number, code, commit and licence.
    """

    name: str
    architecture: str
    url: str | None = None
    packaged: str | None = None
    made_by: str | None = None
    official_name: str | None = None
    pretrain: str | None = None
    schedule: str | None = None
    input_size: int | None = None
    box_ap: float | None = None
    box_ap50: float | None = None
    box_ap_pytorch_table: float | None = None
    box_ap50_pytorch_table: float | None = None
    params_m: float | None = None
    flops_g: float | None = None
    t4_fps: float | None = None
    backbone: str | None = None
    note: str | None = None
    source: dict[str, str] | None = None

    @property
    def file_name(self) -> str:
        """Name of the file in the weight cache, or in the package."""
        return self.packaged or str(self.url).rsplit("/", 1)[-1]


@lru_cache(maxsize=1)
def _raw() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "index.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def index() -> dict[str, Published]:
    """All published checkpoints by name."""
    raw = _raw()
    return {
        name: Published(name=name, **{**entry, "source": raw["sources"].get(entry.get("source"))})
        for name, entry in raw["models"].items()
    }


def backbone_url(name: str) -> str | None:
    """Address of the weights of backbone `name` (underscores and case do not matter); None if the index has none."""
    plain = {key.replace("_", ""): url for key, url in _raw()["backbones"].items()}
    return plain.get(name.replace("_", "").lower())


def published(name: str) -> Published:
    """The published checkpoint `name` (or one of its aliases, such as ``rtdetrv2_s``). UserError if there is none."""
    entries, aliases = index(), _raw()["aliases"]
    entry = entries.get(aliases.get(name, name))
    if entry is None:
        raise UserError(
            f"no published weights are called {name!r}.{did_you_mean(name, [*entries, *aliases])} Known: {', '.join(entries)}"
        )
    return entry


def is_published(name: str) -> bool:
    """Whether `name` (or the checkpoint that it is an alias of) is in the index."""
    return _raw()["aliases"].get(name, name) in index()
