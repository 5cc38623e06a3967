#!/usr/bin/env python
"""Evaluate a checkpoint: ``python tools/test.py configs/rtdetr_r50.py CKPT``; the same as ``mmvit test``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvit.cli import run_command
from mmvit.engine.commands import add_test_arguments, run_test

if __name__ == "__main__":
    sys.exit(run_command(add_test_arguments, run_test, "tools/test.py"))
