"""Plain vision transformers as classifiers."""

from __future__ import annotations

from typing import Any

from .core import Report, check_network


def check_vit(report: Report, golden: dict[str, Any], name: str) -> None:
    """Maps after the last blocks of the four quarters, the final norm and the classifier, which the backbone lacks."""
    from torch import nn

    from mmvit.backbones import create_backbone
    from mmvit.backbones.vit import EPS

    model = create_backbone(name, out_indices=(0, 1, 2, 3))
    heads = {head: golden["filled"][f"{head}.weight"] for head in ("head", "head_dist") if f"{head}.weight" in golden["filled"]}
    model.norm = nn.LayerNorm(model.feature_info[0][0], eps=EPS)
    for head, (classes, dim) in heads.items():
        model.add_module(head, nn.Linear(dim, classes))

    def convert(state):
        return {**model.convert(state), **{k: v for k, v in state.items() if k.split(".")[0] in ("norm", *heads)}}

    def run(model, inputs, case, report):
        maps, quarter = model(inputs[0]), model.num_layers // 4
        normed = model.norm(model.tokens(inputs[0])[-1])
        logits = [model.get_submodule(head)(normed[:, i]) for i, head in enumerate(heads)]
        outputs = {f"block{(i + 1) * quarter - 1}": x for i, x in enumerate(maps)}
        outputs["norm"] = normed[:, model.slots :].transpose(1, 2).unflatten(2, maps[-1].shape[2:])
        outputs |= {"cls": normed[:, 0], "logits": sum(logits) / len(logits) if logits else None}
        return {key: outputs[key] for key in case["outputs"] if key in outputs}

    check_network(report, golden, model, convert, run)
