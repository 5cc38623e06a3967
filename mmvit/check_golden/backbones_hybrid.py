"""Hybrids of convolution and attention."""

from __future__ import annotations

from typing import Any

from .core import Report, check_network, check_parts


def check_nextvit(report: Report, golden: dict[str, Any], name: str) -> None:
    """The maps of the stages, and the blocks of ``submodule_calls`` called by themselves.

    With these weights rounding grows to 1e-3 of the later maps (``noise_floor_rel``), and the recorded ones are of single
    precision: they may differ by as much. The blocks' own outputs have no such noise.
    """
    from mmvit.backbones import create_backbone

    model = create_backbone(name)
    floor = {f"stage{i}": golden.get("noise_floor_rel", {}).get(f"stage{i}", 0.0) / 3 for i in range(4)}

    def run(model, inputs, case, report):
        return {f"stage{i}": x for i, x in enumerate(model(inputs[0]))}

    check_network(report, {**golden, "fp32_vs_fp64": floor}, model, model.convert, run)
    check_parts(report, golden, model)


def check_iformer(report: Report, golden: dict[str, Any], name: str) -> None:
    """The maps of the stages; `normed`: the last through the classifier's norm; `pooled`: its mean."""
    from torch import nn

    from mmvit.backbones import create_backbone
    from mmvit.backbones.iformer import EPS

    model = create_backbone(name)
    model.norm = nn.LayerNorm(model.feature_info[-1][0], eps=EPS)

    def convert(state):
        return {**model.convert(state), **{k: v for k, v in state.items() if k.startswith("norm.")}}

    def run(model, inputs, case, report):
        maps = model(inputs[0])
        normed = model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return {**{f"stage{i}": x for i, x in enumerate(maps)}, "normed": normed, "pooled": normed.mean((2, 3))}

    check_network(report, golden, model, convert, run)
