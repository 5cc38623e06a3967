"""Backbones: parameters, FLOPs, latency and peak memory, beside a reference backbone and timm's implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from mmvit.backbones import Backbone, create_backbone, find_backbone, list_backbones
from mmvit.engine.cost import count_flops, latencies, peak_memory
from mmvit.errors import UserError
from mmvit.layers.reparam import deploy

from .timm_peer import create_peer, import_timm

SIZES = (224, 512)
REFERENCE = "swin_tiny"


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names of the backbones that `patterns` (names, or shell-style patterns) say; all but the debug variants if none."""
    if not patterns:
        return [name for name in list_backbones() if not name.endswith("debug")]
    names: dict[str, None] = {}
    for pattern in patterns:
        found = list_backbones(pattern)
        if not found and any(sign in pattern for sign in "*?["):
            raise UserError(f"No backbone fits {pattern!r}. `mmvit.list_backbones()` lists all of them.")
        if not found:
            cls, arch = find_backbone(pattern)
            found = [f"{cls.family}_{arch}"]
        names |= dict.fromkeys(found)
    return list(names)


def benchmark_backbones(
    patterns: Sequence[str] = (),
    sizes: Sequence[int] = SIZES,
    batch: int = 1,
    rounds: int = 10,
    device: str = "cpu",
    reference: str = REFERENCE,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the backbones `chosen` by `patterns` in evaluation, on square images of the `sizes`.

    Each takes turns with the reference, with its own deploy mode where it has something to merge, and with timm's
    implementation (of the same weights, where possible) where timm is importable.

    Args:
        report: is given each line of the table as soon as it is known.

    Returns:
        settings, ``timm`` (its version, or why it is not there) and ``rows``: dicts of ``backbone``, ``size``, ``params``,
        ``flops`` of one batch (two per multiply-add), ``seconds`` (median), ``bytes`` (peak of one call), ``reference_seconds``
        and ``ratio`` to them, ``deploy`` (None, or ``seconds`` and ``ratio`` to the reference), and ``timm`` (None, or ``name``
        with ``error``, or with ``seconds``, ``ratio`` (ours over timm's), ``bytes`` and ``gap``: the largest relative
        difference of the outputs, None where the weights differ). A backbone that fails has ``error`` instead.
    """
    names, where, timm = chosen(patterns), torch.device(device), import_timm()
    [reference] = chosen([reference])
    rows = []
    for line in _HEAD:
        report(line.format(reference=reference))
    for name in names:
        for size in sizes:
            try:
                with torch.inference_mode():
                    rows.append(_measure(name, size, batch, rounds, where, reference, timm))
            except Exception as error:  # one that fails must not cost the figures of the others
                rows.append(dict(backbone=name, size=size, error=f"{type(error).__name__}: {error}"))
            report(_line(rows[-1]))
    return dict(
        sizes=list(sizes),
        batch=batch,
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        rounds=rounds,
        reference=reference,
        timm=timm if isinstance(timm, str) else timm.__version__,
        rows=rows,
    )


def _build(name: str, device: torch.device) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name).eval().requires_grad_(False).to(device)


def _measure(
    name: str, size: int, batch: int, rounds: int, device: torch.device, reference: str, timm: ModuleType | str
) -> dict[str, Any]:
    image = torch.rand(batch, 3, size, size, device=device)
    ours = _build(name, device)
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: ours(image)}
    peer = _peer(timm, name, ours, image)
    if peer is not None and "run" in peer:
        run = peer.pop("run")
        runs["timm"] = lambda: run(image)
    if reference != name:
        other = _build(reference, device)
        runs["reference"] = lambda: other(image)
    if any(hasattr(module, "merge") for module in ours.modules()):
        merged = _build(name, device)
        merged.load_state_dict(ours.state_dict())
        deploy(merged)
        runs["deploy"] = lambda: merged(image)
    flops = count_flops(runs["ours"])
    seconds = latencies(runs, device, rounds)
    beside = seconds.get("reference", seconds["ours"])
    row = dict(
        backbone=name,
        size=size,
        params=sum(p.numel() for p in ours.parameters()),
        flops=flops,
        seconds=seconds["ours"],
        reference_seconds=beside,
        ratio=seconds["ours"] / beside,
        bytes=peak_memory(runs["ours"], device),
        deploy=dict(seconds=seconds["deploy"], ratio=seconds["deploy"] / beside) if "deploy" in runs else None,
        timm=peer,
    )
    if "timm" in runs:
        figures = dict(seconds=seconds["timm"], ratio=seconds["ours"] / seconds["timm"])
        peer |= figures | dict(bytes=peak_memory(runs["timm"], device))
    return row


def _peer(timm: ModuleType | str, name: str, ours: Backbone, image: torch.Tensor) -> dict[str, Any] | None:
    """``name``, ``run`` and ``gap`` of timm's network, or ``name`` and ``error``; None where there is none."""
    if isinstance(timm, str):
        return None
    from .timm_peer import timm_name

    try:
        peer = create_peer(timm, name, ours, image)
    except (RuntimeError, AssertionError, TypeError) as error:  # timm's network does not take this size
        return dict(name=timm_name(name), error=f"{type(error).__name__}: {error}".splitlines()[0])
    return None if peer is None else dict(name=peer.name, run=peer.run, gap=peer.gap)


_HEAD = (
    "| backbone | size | parameters | GFLOPs | latency (to {reference}) | deploy mode | peak memory | timm's | ours / timm's |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| `{row['backbone']}` | {row['size']} | failed: {' '.join(row['error'].split())} | | | | | | |"
    peer, merged = row["timm"], row["deploy"]
    latency, relative = "", ""
    if peer is not None and "error" in peer:
        latency = "does not take this size"
    elif peer is not None:
        latency = f"{peer['seconds'] * 1e3:.1f} ms, {peer['bytes'] / 2**20:.0f} MiB"
        gap = peer["gap"]
        remark = ", different weights" if gap is None else f", outputs differ by {gap:.0e}" if gap > 1e-3 else ""
        relative = f"{peer['ratio']:.2f}x{remark}"
    cells = (
        f"`{row['backbone']}`",
        str(row["size"]),
        f"{row['params'] / 1e6:.2f} M",
        f"{row['flops'] / 1e9:.2f}",
        f"{row['seconds'] * 1e3:.1f} ms ({row['ratio']:.2f}x)",
        "" if merged is None else f"{merged['seconds'] * 1e3:.1f} ms ({merged['ratio']:.2f}x)",
        f"{row['bytes'] / 2**20:.1f} MiB",
        latency,
        relative,
    )
    return f"| {' | '.join(cells)} |"


def backbones_table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [line.format(reference=result["reference"]) for line in _HEAD]
    return "\n".join([*lines, *map(_line, result["rows"]), "", backbones_note(result)])


def backbones_note(result: dict[str, Any]) -> str:
    """How the table was measured."""
    timm = result["timm"]
    version = timm if timm[:1].isdigit() else f"not compared ({timm.splitlines()[0]})"
    return (
        f"Evaluation, batch {result['batch']}, {result['device']} ({result['threads']} threads), PyTorch {result['torch']}, "
        f"median of {result['rounds']} turns, each with a turn of {result['reference']}; two FLOPs per multiply-add; "
        f"timm: {version}."
    )
