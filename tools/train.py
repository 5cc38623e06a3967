#!/usr/bin/env python
"""Train a model: ``python tools/train.py configs/rtdetr_r50.py [--data shapes]``; the same as ``mmvit train``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvit.cli import run_command
from mmvit.engine.commands import add_train_arguments, run_train

if __name__ == "__main__":
    sys.exit(run_command(add_train_arguments, run_train, "tools/train.py"))
