"""One table of evaluated runs: AP, mask AP, PQ, mIoU, parameters, FLOPs and latency, beside the published figures."""

from __future__ import annotations

import argparse

from mmvit.leaderboard.published import Reported, reported
from mmvit.leaderboard.runs import Run, collect, find_files, read_run
from mmvit.leaderboard.table import as_csv, markdown, records, write

__all__ = [
    "Reported",
    "Run",
    "add_arguments",
    "as_csv",
    "collect",
    "find_files",
    "markdown",
    "read_run",
    "records",
    "reported",
    "run",
    "write",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mmvit leaderboard``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="work dirs (searched with all below), metrics.json files, patterns"
    )
    parser.add_argument(
        "--out", default="leaderboard", metavar="STEM", help="writes STEM.md, STEM.json, STEM.csv (leaderboard)"
    )


def run(args: argparse.Namespace) -> int:
    """Collect evaluated runs into one table, beside the published figures of the same models."""
    runs = collect(args.runs)
    print(markdown(runs))
    print(f"\n{len(runs)} run{'s' if len(runs) != 1 else ''}, written to {', '.join(map(str, write(runs, args.out)))}")
    return 0
