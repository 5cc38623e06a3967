"""Strip a training checkpoint to what inference needs: ``python tools/publish_checkpoint.py best.pth OUT.safetensors``.

Keeps the evaluated weights (16 bits with ``--half``), the classes and the scores. The packaged ``rtdetr_shapes`` is made by

    make quickstart
    python tools/publish_checkpoint.py work_dirs/quickstart/best.pth mmvit/weights/files/rtdetr_shapes.safetensors --half

and ``vwformer_shapes`` by

    python tools/train.py configs/vwformer_shapes.py --seed 0
    python tools/publish_checkpoint.py work_dirs/vwformer_shapes/best.pth mmvit/weights/files/vwformer_shapes.safetensors --half
"""

import argparse
import sys
from pathlib import Path

from mmvit.cli import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this tool."""
    parser.add_argument("checkpoint", help="a checkpoint of tools/train.py")
    parser.add_argument("out", help="the .safetensors file to write")
    parser.add_argument("--half", action="store_true", help="store floating-point weights in 16 bits (loaded as 32)")


def run(args: argparse.Namespace) -> int:
    """Write the small file."""
    from mmvit.weights import load_checkpoint, save_safetensors

    state, meta = load_checkpoint(args.checkpoint)
    if args.half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    keep = {key: meta[key] for key in ("classes", "dataset_meta", "score", "iter", "epoch", "mmvit_version") if key in meta}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(args.out, state, keep)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB, classes {', '.join(keep.get('classes', ()))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, "publish_checkpoint.py"))
