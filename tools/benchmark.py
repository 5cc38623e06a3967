"""Measure a model: ``python tools/benchmark.py rtdetr_r50``."""

import sys

from mmvit.benchmark import add_arguments, run
from mmvit.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, "tools/benchmark.py"))
