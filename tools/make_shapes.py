"""Writes the synthetic "shapes" data: python tools/make_shapes.py OUT --train 800 --val 200 --layouts coco panoptic"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mmvit.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Writes the synthetic 'shapes' data (COCO, panoptic, ADE20K and Cityscapes layouts)."
    )
    parser.add_argument("out", type=Path, help="folder to write; an older shapes folder is replaced")
    parser.add_argument("--train", type=int, default=800, help="training pictures")
    parser.add_argument("--val", type=int, default=200, help="validation pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=160, help="typical side in pixels")
    parser.add_argument("--crowds", type=float, default=0.04, help="share of pictures with a crowd region")
    parser.add_argument("--odd-colours", type=float, default=1 / 7, help="share of objects in any hue, not their class's")
    parser.add_argument(
        "--layouts",
        nargs="+",
        default=["coco", "panoptic", "ade20k", "cityscapes"],
        help="any of coco, panoptic, ade20k, cityscapes (default: all)",
    )
    options = vars(parser.parse_args(arguments))
    out, layouts = options.pop("out"), tuple(options.pop("layouts"))
    start = time.perf_counter()
    from mmvit.data.shapes import write_shapes  # imports NumPy and OpenCV, not needed for --help

    try:
        write_shapes(out, layouts=layouts, **options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{out}: {options['train']} + {options['val']} pictures in {time.perf_counter() - start:.1f} s ({', '.join(layouts)})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
