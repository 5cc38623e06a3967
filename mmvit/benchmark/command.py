"""``mmvit benchmark``."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from mmvit.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mmvit benchmark``."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="model names, such as rtdetr_r50")
    parser.add_argument(
        "--heads",
        action="store_true",
        help="compare the segmentation heads VWFormer, UPerNet and SegFormer on the same features",
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="mIoU against mmseg's metric and PQ against cityscapesscripts', on 1024x2048 images",
    )
    parser.add_argument(
        "--masks",
        action="store_true",
        help="Mask2Former, PEM and kMaX-DeepLab on the same image, Mask2Former against transformers', memory on 1024x2048",
    )
    parser.add_argument(
        "--backbones",
        nargs="*",
        metavar="NAME",
        help="backbones (names or patterns such as 'swin*'; all if none is named), against timm's where timm is installed",
    )
    parser.add_argument("--reference", metavar="NAME", help="what --backbones compares with (default swin_tiny)")
    parser.add_argument(
        "--size",
        type=int,
        help="side of the square input, a multiple of 32 (default 640 for a model and --masks, 512 for --heads, 224 and then "
        "512 for --backbones)",
    )
    parser.add_argument("--batch", type=int, default=1, help="images per call (default 1)")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each (default 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")


def run(args: argparse.Namespace) -> int:
    """Measure what models, heads, mask classifiers, backbones or metrics cost, beside a peer; 1 if a backbone failed."""
    _check(args)
    results = _measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(args.backbones is not None and any("error" in row for row in results["rows"]))


def _check(args: argparse.Namespace) -> None:
    if bool(args.models) + args.heads + args.metrics + args.masks + (args.backbones is not None) != 1:
        raise UserError("name one or more models (such as rtdetr_r50), or give --heads, --masks, --backbones or --metrics.")
    if args.size is not None and (args.size < 32 or args.size % 32):
        raise UserError(f"--size {args.size} is not a positive multiple of 32.")
    if args.metrics and (args.size is not None or args.device != "cpu" or args.batch != 1):
        raise UserError("--metrics measures single 1024x2048 images on the CPU: leave out --size, --batch and --device.")
    if args.reference and args.backbones is None:
        raise UserError("--reference is for --backbones.")
    if args.batch < 1 or args.rounds < 1:
        raise UserError("--batch and --rounds must be at least 1.")


def _measure(args: argparse.Namespace) -> list[dict[str, Any]] | dict[str, Any]:
    if args.heads:
        from mmvit.benchmark.heads import benchmark_heads, heads_table

        result = benchmark_heads(args.size or 512, args.batch, args.rounds, args.device)
        print(heads_table(result))
        return result
    if args.metrics:
        from mmvit.benchmark.metrics import benchmark_metrics, metrics_table
        from mmvit.benchmark.panoptic import benchmark_panoptic, panoptic_table

        semantic = benchmark_metrics(rounds=args.rounds)
        print(metrics_table(semantic))
        panoptic = benchmark_panoptic(rounds=args.rounds)
        print(panoptic_table(panoptic))
        return dict(semantic=semantic, panoptic=panoptic)
    if args.masks:
        from mmvit.benchmark.masks import benchmark_masks, masks_tables

        result = benchmark_masks(args.size or 640, args.batch, args.rounds, args.device)
        print(masks_tables(result))
        return result
    if args.backbones is not None:
        return _measure_backbones(args)
    from mmvit.benchmark.model import benchmark_model, print_report

    results = []
    for name in args.models:
        results.append(benchmark_model(name, args.size or 640, args.batch, args.rounds, args.device))
        print_report(results[-1])
    return results


def _measure_backbones(args: argparse.Namespace) -> dict[str, Any]:
    from mmvit.benchmark.backbones import REFERENCE, SIZES, backbones_note, benchmark_backbones

    result = benchmark_backbones(
        args.backbones,
        (args.size,) if args.size else SIZES,
        args.batch,
        args.rounds,
        args.device,
        args.reference or REFERENCE,
        report=partial(print, flush=True),
    )
    print(f"\n{backbones_note(result)}")
    return result
