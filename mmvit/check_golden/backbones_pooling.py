"""MetaFormer's classifiers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .core import Report, check_network


def check_metaformer(report: Report, golden: dict[str, Any], name: str) -> None:
    """The maps of the stages; `norm`: the last through the classifier's norm; `logits`: a linear layer of its mean."""
    from mmvit.backbones import create_backbone

    model = create_backbone(name)
    classes, channels = golden["filled"]["head.weight"]
    model.norm, model.head = model.make_norm(channels), nn.Linear(channels, classes)

    def convert(state):
        return {**model.convert(state), **{k: v for k, v in state.items() if k.startswith(("norm.", "head."))}}

    def run(model, inputs, case, report):
        maps = model(inputs[0])
        normed = model.norm(maps[-1])
        return {**{f"stage{i}": x for i, x in enumerate(maps)}, "norm": normed, "logits": model.head(normed.mean((2, 3)))}

    check_network(report, golden, model, convert, run)
