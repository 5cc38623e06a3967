"""Semantic segmenters: heads on given maps, whole networks."""

from __future__ import annotations

import re
from typing import Any

from .core import Report, check_network


def with_feature_inputs(golden: dict[str, Any], channels: list[int]) -> None:
    """Cases of a head get the four maps that their image stands for: listed, or by the convention of the notes."""
    for index, case in enumerate(golden["cases"]):
        image = case.pop("input")
        batch, _, height, width = image["shape"]
        case["inputs"] = golden.get("feature_inputs", {index: None})[index] or [
            dict(shape=[batch, c, height >> i + 2, width >> i + 2], seed=image["seed"] + i) for i, c in enumerate(channels)
        ]


def option(golden: dict[str, Any], *patterns: str) -> str | None:
    """What the first of `patterns` (regular expressions with one group) that is found in the golden's note captures."""
    for pattern in patterns:
        found = re.search(pattern, golden.get("note", ""))
        if found:
            return found.group(1)
    return None


def vw_settings(golden: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Width and shortcut of a golden's VWFormer head."""
    classes, channels = golden["filled"][f"{prefix}conv_seg.weight"][:2]
    short_cut = option(golden, r"\bS=(True|False)", r"short_cut=(True|False)")
    settings = dict(channels=channels, num_classes=classes)
    return settings if short_cut is None else dict(settings, short_cut=short_cut == "True")


def check_vw_head(report: Report, golden: dict[str, Any], name: str) -> None:
    """A decode head of VWFormer on given maps: the fused map, the aggregated one, the logits."""
    from mmvit.heads import VWCityHead, VWHead

    filled, city = golden["filled"], "city" in name
    channels = [filled[f"linear_c{k}.{'conv' if city else 'proj'}.weight"][1] for k in (1, 2, 3, 4)]
    heads = option(golden, r"(?:nheads|num_heads|heads)=(\d+)")
    settings = vw_settings(golden) | (dict(num_heads=int(heads)) if heads else {})
    model = (VWCityHead if city else VWHead)(channels, **settings)
    with_feature_inputs(golden, channels)

    def run(model, inputs, case, report):
        fused = model.fuse(inputs)
        return {"fused": fused, "vwformer": model.aggregate(fused), "logits": model(inputs)}

    check_network(report, golden, model, model.convert, run)


def check_mmseg_heads(report: Report, golden: dict[str, Any], name: str) -> None:
    """UPerNet's decode head and auxiliary head on given maps."""
    from torch import nn

    from mmvit.architectures import build_head
    from mmvit.architectures.segmenter import head_settings

    filled = golden["filled"]
    levels = [filled[f"decode_head.lateral_convs.{i}.conv.weight"][1] for i in range(3)]
    levels.append(filled["decode_head.psp_modules.0.1.conv.weight"][1])
    classes = filled["decode_head.conv_seg.weight"][0]
    settings = dict(zip(("decode_head", "auxiliary_head"), head_settings("upernet", "")))
    info = [(c, 4 << i) for i, c in enumerate(levels)]
    model = nn.ModuleDict({part: build_head(s, info, classes) for part, s in settings.items()})
    with_feature_inputs(golden, levels)

    def run(model, inputs, case, report):
        head = model["decode_head"]
        return {
            "logits": head(inputs),
            "ppm_bottleneck": head.psp_forward(inputs),
            "features": head._forward_feature(inputs),
            "aux_logits": model["auxiliary_head"](inputs),
        }

    check_network(report, golden, model, lambda state: state, run)


def check_segmenter(report: Report, golden: dict[str, Any], name: str) -> None:
    """A whole segmenter: the backbone's maps, the logits, and those resized to the image."""
    from mmvit.architectures import create_model

    settings: dict[str, Any] = {}
    if name.startswith("vwformer"):
        head = vw_settings(golden, "decode_head.")
        settings["num_classes"] = head.pop("num_classes")
        settings["decode_head"] = head
    if not any(key.startswith("auxiliary_head.") for key in golden["filled"]):
        settings["auxiliary_head"] = False
    model = create_model(name, **settings)

    def run(model, inputs, case, report):
        maps = model.backbone(inputs[0])
        outputs = {f"stage{i}": x for i, x in enumerate(maps)}
        outputs |= {"logits": model.decode_head(maps), "seg": model.whole(inputs[0])}
        if model.auxiliary_head is not None:
            outputs["aux_logits"] = model.auxiliary_head(maps)
        return outputs

    check_network(report, golden, model, model.convert, run)
