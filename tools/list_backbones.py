"""List the backbones: ``python tools/list_backbones.py 'swin*'``; ``--update`` recomputes the figures and README's table."""

import sys

from mmvit.benchmark.collection import add_arguments, run
from mmvit.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, "tools/list_backbones.py"))
