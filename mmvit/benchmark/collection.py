"""``mmvit backbones``: the table of all backbones, here and in README.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mmvit.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mmvit.backbones import BackboneInfo

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- backbones: begin -->", "<!-- backbones: end -->"
UPDATE = "python tools/list_backbones.py --update"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mmvit backbones``."""
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="shell-style pattern of names, such as 'swin*'; default: all but debug sizes",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, with full numbers and the papers' titles")
    parser.add_argument(
        "--update",
        action="store_true",
        help="in a checkout: recompute the recorded figures of PATTERN's backbones (default: all; minutes) and README's table",
    )


def run(args: argparse.Namespace) -> int:
    """List the backbones: parameters, FLOPs, strides, channels, paper and whether classification weights load by name."""
    if args.update:
        update(args.pattern or "*")
        return 0
    infos = select(args.pattern)
    text = json.dumps([asdict(info) for info in infos], indent=1) if args.json else terminal_table(infos)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def select(pattern: str | None) -> list[BackboneInfo]:
    """The backbones of `pattern`; all but the debug sizes for None. UserError if there are none."""
    from mmvit.backbones import backbone_info

    infos = [backbone_info(name) for name in matching(pattern or "*")]
    return infos if pattern else [info for info in infos if not info.debug]


def matching(pattern: str) -> list[str]:
    """The names that match; UserError if there are none."""
    from mmvit.backbones import list_backbones

    names = list_backbones(pattern)
    if not names:
        raise UserError(
            f"no backbone matches {pattern!r}.{did_you_mean(pattern, list_backbones())} A pattern is shell-style and stands "
            "for the whole name: 'swin*' matches all names that begin with swin. `mmvit backbones` lists all."
        )
    return names


def update(pattern: str) -> None:
    """Measure the backbones of `pattern`, and those without record; write the records and README's table."""
    from mmvit.backbones import catalogue

    if not README.exists():
        raise UserError(f"--update writes {README}, which is not there: call it in a checkout of mmvit (pip install -e .).")
    chosen = set(matching(pattern))
    old = catalogue.costs() if catalogue.COSTS.exists() else {}
    records = {}
    for name in catalogue.list_backbones():
        if name in chosen or name not in old:
            records[name] = catalogue.measure(name)
            print(f"{name}: {millions(records[name]['parameters'])} M parameters, {giga(records[name]['flops'])} GFLOPs")
        else:
            records[name] = old[name]
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items())
    catalogue.COSTS.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    catalogue.costs.cache_clear()
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {catalogue.COSTS}, {README}")


def with_table(readme: str) -> str:
    """The text `readme` with the table of all recorded backbones but the debug sizes between the markers."""
    from mmvit.backbones import backbone_info
    from mmvit.backbones.catalogue import costs

    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README.md lacks the lines {BEGIN} and {END}: put them where the table of backbones belongs.")
    return f"{before}{BEGIN}\n{markdown([info for info in map(backbone_info, costs()) if not info.debug])}\n{END}{after}"


def markdown(infos: Sequence[BackboneInfo]) -> str:
    """An introduction, and a table with one row per family and paper."""
    families: dict[tuple[str, str], list[BackboneInfo]] = {}
    for info in sorted(infos, key=lambda info: (info.family, info.arxiv, info.parameters)):
        families.setdefault((info.family, info.arxiv), []).append(info)
    rows = [_row(family, members) for (family, _), members in families.items()]
    return "\n".join(
        [
            f"Backbones, {len(infos)} variants, named `<family>_<variant>`. Parameters in millions, without the classifier;",
            "GFLOPs of this code at 224x224, two per multiply-add (papers mostly count one); strides of the default outputs;",
            "classification weights: `yes` load by name, `page`: the error message names the web page.",
            '`mmvit backbones "swin*"` prints the channels, too; in Python: `mmvit.list_backbones("swin*", details=True)`.',
            "",
            "| family | paper | variants: parameters / GFLOPs | strides | weights |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"(Made by `{UPDATE}`.)",
        ]
    )


def _row(family: str, members: Sequence[BackboneInfo]) -> str:
    paper = f"[{members[0].paper}](https://arxiv.org/abs/{members[0].arxiv})"
    variants = ", ".join(f"`{info.variant}` {millions(info.parameters)} / {giga(info.flops)}" for info in members)
    strides = "; ".join(dict.fromkeys(numbers(info.strides) for info in members))
    return f"| `{family}` | {paper} | {variants} | {strides} | {_weights(members)} |"


def _weights(members: Sequence[BackboneInfo]) -> str:
    """``yes``, or the exceptions first: `` `b` none, others yes``."""
    usual = Counter(info.weights for info in members).most_common(1)[0][0]
    exceptions = [f"`{info.variant}` {info.weights}" for info in members if info.weights != usual]
    return ", ".join([*exceptions, f"others {usual}"]) if exceptions else usual


def terminal_table(infos: Iterable[BackboneInfo]) -> str:
    """A table for the terminal, one row per backbone."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("backbone", "params (M)", "GFLOPs", "strides", "channels", "weights", "arXiv"):
        table.add_column(column, justify="right" if column in ("params (M)", "GFLOPs") else "left", no_wrap=True)
    for info in infos:
        table.add_row(
            info.name,
            millions(info.parameters),
            giga(info.flops),
            numbers(info.strides),
            numbers(info.channels),
            info.weights,
            info.arxiv,
        )
    console = Console(width=120)
    with console.capture() as text:
        console.print(table)
    return text.get().rstrip()


def millions(count: int) -> str:
    """Parameters in millions."""
    return f"{count / 1e6:.1f}" if count >= 1e6 else f"{count / 1e6:.2f}"


def giga(count: int) -> str:
    """FLOPs in 1e9."""
    return f"{count / 1e9:.1f}" if count >= 1e9 else f"{count / 1e9:.2f}"


def numbers(values: Iterable[int]) -> str:
    """``4 8 16 32``."""
    return " ".join(map(str, values))
