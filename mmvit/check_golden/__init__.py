"""Compare networks, losses and other functions with recorded numbers of the official implementations ("goldens").

A golden is a json file: the official state-dict keys and shapes, deterministic weights and inputs made from key names and
seeds alone, and probes of the official outputs. Networks are checked in float64: the official state dict is filled, converted
with the model's own `convert`, loaded strictly, run, and compared; every parameter must take part in some output.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmvit.errors import UserError

from .backbones_hybrid import check_iformer, check_nextvit
from .backbones_pooling import check_metaformer
from .backbones_vit import check_vit
from .core import Report, check_backbone, check_network, fill_image, fill_values, probe_index
from .masks import (
    check_axial_block,
    check_kmax_backbone,
    check_kmeans_layer,
    check_mask_losses,
    check_mask_postprocess,
    check_mask_segmenter,
)
from .rtdetr import check_anchors, check_denoising, check_hybrid_encoder, check_losses, check_postprocess, check_rtdetr
from .semantic import check_mmseg_heads, check_segmenter, check_vw_head
from .slab import check_slab, check_slab_merged

__all__ = ["Report", "check_file", "check_network", "fill_image", "fill_values", "probe_index"]

#: Golden name (regular expression) -> check; the first that matches is used, a backbone of that name otherwise.
CHECKS: list[tuple[str, Callable[[Report, dict[str, Any], str], None]]] = [
    (r"rtdetr_presnet\w+", lambda report, golden, name: check_backbone(report, golden, name.removeprefix("rtdetr_"))),
    (r"rtdetr_hybrid_encoder_\w+", check_hybrid_encoder),
    (r"rtdetr_anchors\w*", check_anchors),
    (r"rtdetr_denoising\w*", check_denoising),
    (r"rtdetr(v2)?_losses\w*", check_losses),
    (r"rtdetr_postprocess\w*", check_postprocess),
    (r"rtdetr(v2)?_(r\d+vd|hgnetv2)\w*", check_rtdetr),
    (r"swin_[ts]_prepbn_merge", check_slab_merged),
    (r"(swin|pvt)_[tsm]_prepbn|slab_(swin|pvt)_[tsmb]", check_slab),
    (r"(mask2former|kmax)_losses_\w+", check_mask_losses),
    (r"(mask2former|kmax)_postprocess_\w+", check_mask_postprocess),
    (r"kmax_axial_block", check_axial_block),
    (r"kmax_transformer_layer", check_kmeans_layer),
    (r"kmax_\w+_backbone", check_kmax_backbone),
    (r"(mask2former|vwmask2former|vwdeformmask2former|kmax|pem)_\w+", check_mask_segmenter),
    (r"vw(city)?head_\w+", check_vw_head),
    (r"upernet_head_\w+", check_mmseg_heads),
    (r"metaformer_\w+", check_metaformer),
    (r"nextvit_\w+", check_nextvit),
    (r"iformer_\w+", check_iformer),
    (r"vit_(deit|large)_\w+", check_vit),
    (r"(upernet|segformer|vwformer)_\w+", check_segmenter),
]


def check_file(path: str | Path) -> Report:
    """Check one golden.

    Raises:
        UserError: the file is not a golden, or nothing here has its name.
    """
    try:
        golden = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable golden: {error}.") from None
    if not isinstance(golden, dict) or "name" not in golden:
        raise UserError(f"{path} is not a golden: it has no 'name'.")
    report = Report(golden["name"])
    check = next((check for pattern, check in CHECKS if re.fullmatch(pattern, golden["name"])), check_backbone)
    check(report, golden, golden["name"])
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mmvit check``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="golden files (json)")


def run(args: argparse.Namespace) -> int:
    """Print one line per golden; 1 if any fails."""
    failed = 0
    for path in args.files:
        try:
            report = check_file(path)
        except UserError as error:
            report = Report(Path(path).stem, failures=[str(error)])
        print(report.line(), flush=True)
        failed += not report.passed
    return int(failed > 0)
