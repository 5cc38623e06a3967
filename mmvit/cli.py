"""The ``mmvit`` console command. A subcommand's module is imported only when that subcommand is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmvit.errors import UserError, did_you_mean

# Threads of PyTorch wait for each other by spinning. Where another process wants the cores, too, GNU OpenMP's default (300,000
# rounds) makes small models up to twenty times slower; this costs nothing on an idle machine. Read when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

AddArguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]


class Command(NamedTuple):
    """Where a subcommand lives: `module` has a function `add_arguments(parser)` and a function `run(args) -> exit status`."""

    help: str
    module: str
    add_arguments: str = "add_arguments"
    run: str = "run"


COMMANDS = {
    "train": Command("train a model from a config", "mmvit.engine.commands", "add_train_arguments", "run_train"),
    "test": Command("evaluate a checkpoint", "mmvit.engine.commands", "add_test_arguments", "run_test"),
    "predict": Command("draw and save predictions for pictures and videos", "mmvit.inference.command"),
    "check": Command("compare networks with the official ones (golden files)", "mmvit.check_golden"),
    "prepare": Command("download, check and convert data sets", "mmvit.data.prepare"),
    "backbones": Command("list the backbones: parameters, FLOPs, strides, channels, paper", "mmvit.benchmark.collection"),
    "leaderboard": Command("compare evaluated runs with each other and with published figures", "mmvit.leaderboard"),
    "benchmark": Command("parameters, FLOPs, latency and memory of models, heads and metrics", "mmvit.benchmark"),
    "doctor": Command("check this installation, and say what is missing", "mmvit.doctor"),
}


def run_command(add_arguments: AddArguments, run: Run, prog: str, argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, call `run` and turn its outcome into an exit status.

    A `UserError` becomes one line on stderr and status 2 (with a traceback too where ``MMVIT_DEBUG=1``), Ctrl-C becomes
    130. Any other exception is a bug and propagates. `tools/*.py` and `demo/*.py` are wrappers of this function.
    """
    try:
        parser = argparse.ArgumentParser(prog=prog, description=_description(run))
        add_arguments(parser)
        return int(run(parser.parse_args(argv)))
    except UserError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _description(run: Run) -> str | None:
    return (run.__doc__ or "").strip().split("\n\n")[0] or None


def _report(error: UserError) -> int:
    if os.environ.get("MMVIT_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    return 2


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return (
        "usage: mmvit [-h] [--version] COMMAND ...\n\n"
        "Vision backbones in detectors and segmenters, on the OpenMMLab stack.\n\n"
        f"commands:\n{rows}\n\n`mmvit COMMAND --help` shows the options of a command."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmvit COMMAND ...`` and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from mmvit import __version__

        print(f"mmvit {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _report(
            UserError(f"unknown command {words[0]!r}.{did_you_mean(words[0], COMMANDS)} Commands: {', '.join(COMMANDS)}")
        )
    command = COMMANDS[words[0]]
    try:
        module = importlib.import_module(command.module)
    except UserError as error:
        return _report(error)
    except KeyboardInterrupt:
        return 130
    return run_command(getattr(module, command.add_arguments), getattr(module, command.run), f"mmvit {words[0]}", words[1:])


if __name__ == "__main__":
    sys.exit(main())
