"""Compare evaluated runs: ``python tools/leaderboard.py work_dirs``."""

import sys

from mmvit.cli import run_command
from mmvit.leaderboard import add_arguments, run

if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, "tools/leaderboard.py"))
