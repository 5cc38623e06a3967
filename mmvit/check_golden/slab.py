"""SLAB's backbones, whose deployment merges norms."""

from __future__ import annotations

import re
from typing import Any

from .core import Report, check_network


def check_slab(report: Report, golden: dict[str, Any], name: str) -> None:
    """Swin and PVT with PRepBN, whose layer norms only take part in training. `pooled`: the mean of the last map."""
    from mmvit.backbones import create_backbone

    model = create_backbone(name)

    def run(model, inputs, case, report):
        maps = model(inputs[0])
        outputs = {f"stage{i}": x for i, x in enumerate(maps)} | {"pooled": maps[-1].mean((2, 3))}
        return {key: outputs[key] for key in case["outputs"] if key in outputs}

    layer_norms = {n for n, _ in model.named_parameters() if re.search(r"norm\d?\.norm1\.", n)}
    check_network(report, golden, model, model.convert, run, layer_norms)


def check_slab_merged(report: Report, golden: dict[str, Any], name: str) -> None:
    """Swin with RepBN as in the official classifier: a norm at the end, and no shift where one window covers the map.

    Its merging of the patch embedding loses alpha * (bias of the convolution); `merged_normed` is recorded with that error.
    """
    import copy

    from torch import nn

    from mmvit.backbones import create_backbone
    from mmvit.backbones.slab import RepBN
    from mmvit.layers.reparam import deploy

    model = create_backbone(name)
    for i in range(4):
        setattr(model, f"norm{i}", nn.Identity())
    model.norm = RepBN(model.feature_info[-1][0])

    def convert(state):
        return {**model.convert(state), **{k: v for k, v in state.items() if k.startswith("norm.")}}

    def run(model, inputs, case, report):
        for (_, stride), layer in zip(model.feature_info, model.layers):
            for block in layer.blocks:
                if min(inputs[0].shape[2:]) <= stride * block.attn.window[0]:
                    block.attn.shift = 0
        maps = model(inputs[0])
        merged = deploy(copy.deepcopy(model))
        merged.patch_embed.proj.bias.sub_((model.patch_embed.norm.alpha * model.patch_embed.proj.bias).detach())
        outputs = {f"stage{i}": x for i, x in enumerate(maps)}
        for key, x in dict(normed=maps[-1], merged_normed=merged(inputs[0])[-1]).items():
            outputs[key] = model.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return outputs

    check_network(report, golden, model, convert, run)
