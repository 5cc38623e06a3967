"""Decode heads of semantic segmentation on the same features: parameters, FLOPs and latency, relative to UPerNet's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmvit.architectures.segmenter import build_head, head_settings
from mmvit.backbones import create_backbone
from mmvit.engine.cost import count_flops, latencies

#: Name in the table -> method; the first is what the others are compared with.
HEADS = {"UPerNet": "upernet", "SegFormer": "segformer", "VWFormer": "vwformer"}
BACKBONES = ("swin_tiny", "mit_b0")
CLASSES = 150  # ADE20K


def benchmark_heads(
    size: int = 512,
    batch: int = 1,
    rounds: int = 10,
    device: str = "cpu",
    backbones: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure the heads of `HEADS`, as published for each backbone, on random features of its channels
    (`BACKBONES` if None).

    The heads take turns, so that all meet the same machine.

    Returns:
        settings, and ``rows``: dicts of ``backbone``, ``head``, ``channels``, ``params``, ``flops`` of one batch (two per
        multiply-add), ``seconds`` (median), and ``params_ratio``, ``flops_ratio``, ``seconds_ratio`` to UPerNet's.
    """
    where = torch.device(device)
    rows: list[dict[str, Any]] = []
    for name in BACKBONES if backbones is None else backbones:
        rows += _measure(name, size, batch, rounds, where)
    return dict(
        size=size,
        batch=batch,
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        rounds=rounds,
        rows=rows,
    )


def _measure(backbone: str, size: int, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    with torch.device("meta"):
        features = create_backbone(backbone).feature_info
    maps = [torch.rand(batch, channels, size // stride, size // stride, device=device) for channels, stride in features]
    heads = {}
    for name, method in HEADS.items():
        settings, _ = head_settings(method, backbone)
        heads[name] = (settings["channels"], build_head(settings, features, CLASSES).eval().to(device))
    runs: dict[str, Callable[[], Any]] = {name: (lambda head=head: head(maps)) for name, (_, head) in heads.items()}
    with torch.inference_mode():
        flops = {name: count_flops(run) for name, run in runs.items()}
        seconds = latencies(runs, device, rounds)
    params = {name: sum(p.numel() for p in head.parameters()) for name, (_, head) in heads.items()}
    first = next(iter(runs))
    return [
        dict(
            backbone=backbone,
            head=name,
            channels=heads[name][0],
            params=params[name],
            flops=flops[name],
            seconds=seconds[name],
            params_ratio=params[name] / params[first],
            flops_ratio=flops[name] / flops[first],
            seconds_ratio=seconds[name] / seconds[first],
        )
        for name in runs
    ]


def heads_table(result: dict[str, Any]) -> str:
    """The result in Markdown; ratios to UPerNet stand in brackets."""
    lines = [
        "| features of | head (channels) | parameters | GFLOPs | latency |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = (
            f"`{row['backbone']}`",
            f"{row['head']} ({row['channels']})",
            f"{row['params'] / 1e6:.2f} M ({row['params_ratio']:.2f}x)",
            f"{row['flops'] / 1e9:.1f} ({row['flops_ratio']:.2f}x)",
            f"{row['seconds'] * 1e3:.0f} ms ({row['seconds_ratio']:.2f}x)",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Decode heads alone, {CLASSES} classes, {result['size']}x{result['size']} input, batch {result['batch']}, "
        f"{result['device']} ({result['threads']} threads), PyTorch {result['torch']}, median of {result['rounds']} turns; "
        "two FLOPs per multiply-add.",
    ]
    return "\n".join(lines)
