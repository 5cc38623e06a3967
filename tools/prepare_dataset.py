"""Prepare ADE20K, Cityscapes or COCO for training: ``python tools/prepare_dataset.py ade20k``."""

import sys

from mmvit.cli import run_command
from mmvit.data.prepare import add_arguments, run

if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, "tools/prepare_dataset.py"))
