"""Compare our networks with recorded numbers of the official code: ``python tools/check_golden.py tests/goldens/*.json``."""

import sys

from mmvit.check_golden import add_arguments, run
from mmvit.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, "tools/check_golden.py"))
