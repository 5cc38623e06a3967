"""Compare networks, losses and other functions with recorded numbers of the official implementations ("goldens").

A golden is a json file: the official state-dict keys and shapes, deterministic weights and inputs made from key names and
seeds alone, and probes of the official outputs. Networks are checked in float64: the official state dict is filled, converted
with the model's own `convert`, loaded strictly, run, and compared; every parameter must take part in some output.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmvit.errors import UserError

TOLERANCE = 5e-5


def fill_values(key: str, shape: list[int]) -> np.ndarray:
    """The value of state-dict entry `key`: seeded by the name alone, scaled by fan-in; norm scales and variances near 1."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("running_var"):
        normal = 1 + 0.1 * np.abs(normal)
    elif len(shape) >= 2:
        normal = normal / np.sqrt(np.prod(shape[1:]))
    else:
        normal = 0.1 * normal + (1 if key.endswith("weight") else 0)
    return np.asarray(normal, dtype=np.float32)


def fill_image(shape: list[int], seed: int = 0) -> np.ndarray:
    """A standard-normal float32 array."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def probe_index(size: int, count: int = 64) -> np.ndarray:
    """Flat positions at which an output of `size` elements is recorded."""
    return np.random.RandomState(size % (2**32)).randint(0, size, count)


@dataclass
class Report:
    """What a golden showed. `error` is the largest deviation relative to the output's absmax, `allowed` its limit."""

    name: str
    cases: int = 0
    error: float = 0.0
    worst: str = ""
    unused: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and not self.unused and self.cases > 0

    def compare(self, label: str, value: Any, expected: Any, absmax: float | None = None, tolerance: float = TOLERANCE) -> None:
        """Record |value - expected| / absmax; more than `tolerance` fails."""
        value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        if value.shape != expected.shape:
            self.failures.append(f"{label}: shape {value.shape}, expected {expected.shape}")
            return
        if not value.size:
            return
        scale = absmax or float(np.abs(expected).max()) or 1.0
        error = float(np.max(np.abs(value - expected))) / scale
        if not error <= self.error:  # a NaN counts as the worst
            self.error, self.worst = error, label
        if not error <= tolerance:
            self.failures.append(f"{label}: error {error:.2e} of absmax, allowed {tolerance:.0e}")

    def equal(self, label: str, value: Any, expected: Any) -> None:
        """Fail unless both are the same."""
        if value != expected:
            self.failures.append(f"{label}: {str(value)[:120]}, expected {str(expected)[:120]}")

    def output(self, label: str, value: Any, golden: dict[str, Any], tolerance: float) -> None:
        """Compare shape, mean, standard deviation and probes of an output tensor or array."""
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
        if list(array.shape) != golden["shape"]:
            self.failures.append(f"{label}: shape {list(array.shape)}, expected {golden['shape']}")
            return
        probes = array.reshape(-1)[probe_index(array.size)]
        for part, got, want in (
            ("probes", probes, golden["probes"]),
            ("mean", array.mean(), golden["mean"]),
            ("std", array.std(), golden["std"]),
        ):
            self.compare(f"{label} {part}", got, want, golden["absmax"], tolerance)

    def line(self) -> str:
        """One line: name, cases, largest relative error, unused keys, pass or fail."""
        verdict = "pass" if self.passed else "FAIL"
        cases = f"{self.cases} case{'s' if self.cases != 1 else ' '}"
        text = f"{verdict}  {self.name:<44} {cases}  error {self.error:.1e}  unused keys {len(self.unused)}"
        details = self.failures[:3] + ([f"never used: {', '.join(self.unused[:3])}"] if self.unused else [])
        return text + "".join(f"\n      {d}" for d in details)


def tolerance_of(golden: dict[str, Any], case: dict[str, Any], output: str) -> float:
    """5e-5, or 1e-6 for float64 goldens; three times the official float32 rounding where that is recorded and larger."""
    base = 1e-6 if golden.get("dtype") == "float64" else TOLERANCE
    rounding = case.get("fp32_vs_fp64", golden.get("fp32_vs_fp64", 0.0))
    if isinstance(rounding, dict):
        rounding = rounding.get(output, 0.0)
    return max(base, 3 * float(rounding))


# ---------------------------------------------------------------------------------------------------------------- networks


def official_state(golden: dict[str, Any]) -> dict[str, Any]:
    """The filled part of the official state dict, as tensors."""
    import torch

    state = {key: torch.from_numpy(fill_values(key, shape)) for key, shape in golden["filled"].items()}
    for override in golden.get("fill_overrides", ()):
        for key in [k for k in state if re.search(override["keys"], k)]:
            state[key] = (
                torch.full_like(state[key], override["constant"]) if "constant" in override else state[key] * override["scale"]
            )
    return state


def load_official(report: Report, model: Any, convert: Callable, golden: dict[str, Any]) -> None:
    """Fill, convert and load strictly; ``kept`` buffers must be computed by the model or dropped by `convert`."""
    import torch

    state = convert(official_state(golden))
    known = model.state_dict()
    problems = model.load_state_dict(state, strict=False)
    missing = [
        k for k in problems.missing_keys if k in dict(model.named_parameters()) or k.endswith(("running_mean", "running_var"))
    ]
    kept = convert({k: torch.empty(shape) for k, shape in golden.get("kept", {}).items()})
    unexpected = [*problems.unexpected_keys, *(k for k in kept if k not in known and not k.endswith("num_batches_tracked"))]
    report.equal("missing keys", missing, [])
    report.equal("unexpected keys", unexpected, [])
    if "params" in golden:
        report.equal("parameters", sum(p.numel() for p in model.parameters()) + frozen_affines(model, golden), golden["params"])


def frozen_affines(model: Any, golden: dict[str, Any]) -> int:
    """Affines of frozen norms, where the golden counts them as parameters."""
    from mmvit.layers.conv import FrozenBatchNorm2d

    count = sum(m.weight.numel() + m.bias.numel() for m in model.modules() if isinstance(m, FrozenBatchNorm2d))
    return count if golden["params"] == sum(p.numel() for p in model.parameters()) + count else 0


def inputs_of(case: dict[str, Any]) -> list[Any]:
    """The case's input tensors in float64."""
    import torch

    specs = (
        [case["input"]]
        if "input" in case
        else list(case["inputs"].values() if isinstance(case["inputs"], dict) else case["inputs"])
    )
    return [torch.from_numpy(fill_image(s["shape"], s["seed"])).double() for s in specs]


def check_network(
    report: Report, golden: dict[str, Any], model: Any, convert: Callable, run: Callable, training_only: set[str] = frozenset()
) -> None:
    """Run every case: ``run(model, inputs, case) -> {output: tensor}``; the gradients find unused parameters."""
    import torch

    load_official(report, model, convert, golden)
    if report.failures:
        return
    model.double().eval().requires_grad_(True)
    used: set[str] = set()
    for case in golden["cases"]:
        outputs = run(model, inputs_of(case), case, report)
        for name, expected in case["outputs"].items():
            if name not in outputs:
                report.failures.append(f"output {name!r} is not computed")
                continue
            report.output(name, outputs[name], expected, tolerance_of(golden, case, name))
        loss = sum(
            (o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view_as(o)).sum()
            for o in outputs.values()
            if o.requires_grad
        )
        model.zero_grad()
        loss.backward()
        used |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        report.cases += 1
    suspects = [n for n, _ in model.named_parameters() if n not in used and not n.startswith(tuple(training_only))]
    report.unused = [n for n in suspects if not changes_output(model, n, golden["cases"][0], run)]


def changes_output(model: Any, name: str, case: dict[str, Any], run: Callable) -> bool:
    """Whether another value of parameter `name` changes some output (no gradient reaches rounded positions, say)."""
    import torch

    with torch.no_grad():
        parameter = model.get_parameter(name)
        saved, before = parameter.clone(), run(model, inputs_of(case), case, Report(""))
        parameter.copy_(torch.from_numpy(fill_values(f"another {name}", parameter.shape)))
        after = run(model, inputs_of(case), case, Report(""))
        parameter.copy_(saved)
    return any(not torch.equal(before[key], after[key]) for key in before)


def check_backbone(report: Report, golden: dict[str, Any], name: str) -> None:
    """Outputs are named by stride (s8, s16, ...) or by stage (stage0, stage1, ...)."""
    from mmvit.backbones import create_backbone

    recorded = {key for case in golden["cases"] for key in case["outputs"]}
    stages = sorted(int(key[5:]) for key in recorded if re.fullmatch(r"stage\d+", key))
    model = create_backbone(name, out_indices=stages or None)
    names = [f"stage{i}" for i in stages] or [f"s{stride}" for _, stride in model.feature_info]
    report.equal("outputs", sorted(recorded), sorted(names))

    def run(model, inputs, case, report):
        return dict(zip(names, model(inputs[0])))

    check_network(report, golden, model, model.convert, run)


def check_keys(report: Report, golden: dict[str, Any], model: Any) -> None:
    """Names, shapes and counts of the official state dict: filled, it must load strictly."""
    if golden.get("trainable") is not None:
        report.equal("trainable", sum(p.numel() for p in model.parameters() if p.requires_grad), golden["trainable"])
    running = {k: s for k, s in golden["buffers"].items() if is_filled(k)}
    kept = {k: s for k, s in golden["buffers"].items() if k not in running}
    load_official(report, model, model.convert, {**golden, "filled": {**golden["parameters"], **running}, "kept": kept})
    report.cases += 1


def is_filled(buffer: str) -> bool:
    """Whether a buffer holds learnt values: running statistics and frozen affines."""
    return buffer.endswith(("running_mean", "running_var", ".weight", ".bias"))


# ----------------------------------------------------------------------------------------------------------------- RT-DETR


def rtdetr_name(name: str) -> str:
    """Golden name -> model name: rtdetrv2_r50vd_m_dsp_keys -> rtdetrv2_r50m_dsp."""
    return re.sub(r"(r\d+)vd(?:_(m))?", r"\1\2", re.sub(r"_(keys|nonsquare)$", "", name))


def check_rtdetr(report: Report, golden: dict[str, Any], name: str) -> None:
    """A whole RT-DETR: features, selected proposals, all decoder layers, and the evaluated one."""
    from mmvit.architectures import create_model

    model = create_model(rtdetr_name(name))
    if "cases" not in golden:
        check_keys(report, golden, model)
        return

    def run(model, inputs, case, report):
        features = model.backbone(inputs[0])
        levels = model.neck(features)
        recorded = sum(1 for key in case["outputs"] if re.fullmatch(r"dec\d+_logits", key))
        evaluated = model.head.eval_layers
        model.set_eval_layers(max(recorded, evaluated))
        output = model.head(levels, all_layers=True)
        model.set_eval_layers(evaluated)
        strides = [stride for _, stride in model.backbone.feature_info]
        found = {f"{part}{s}": x for part, maps in (("backbone", features), ("encoder", levels)) for s, x in zip(strides, maps)}
        named = {
            "enc_topk": output.proposals,
            "pred": output.layers[evaluated - 1],
            **{f"dec{i}": p for i, p in enumerate(output.layers)},
        }
        order = output.tokens.argsort(-1)
        ties = case.get("near_tie_ranks", [])
        for key, prediction in named.items():
            for part, value in zip(("logits", "boxes"), prediction):
                found[f"{key}_{part}"] = value
                found[f"{key}_{part}_by_token"] = value.gather(1, order[..., None].expand_as(value))
        for image, head in enumerate(case.get("topk_index_head", ())):
            clear = [i for i in range(len(head)) if not {i, i - 1} & set(ties[image] if ties else ())]
            report.equal(
                f"selected tokens of image {image}", [int(output.tokens[image, i]) for i in clear], [head[i] for i in clear]
            )
        return {key: found[key] for key in case["outputs"] if key in found and not _tied(key, case)}

    skipped = {key for case in golden["cases"] for key in case["outputs"] if _tied(key, case)}
    for case in golden["cases"]:
        case["outputs"] = {k: v for k, v in case["outputs"].items() if k not in skipped}
    check_network(report, golden, model, model.convert, run, model.training_only())


def _tied(key: str, case: dict[str, Any]) -> bool:
    """Whether an output depends on the order of near ties (then its ``_by_token`` twin is compared instead)."""
    return bool(case.get("near_tie_ranks")) and f"{key}_by_token" in case["outputs"]


def check_hybrid_encoder(report: Report, golden: dict[str, Any], name: str) -> None:
    """The neck alone; outputs p8, p16, p32."""
    from mmvit.necks import HybridEncoder

    c = golden["config"]
    model = HybridEncoder(
        c["in_channels"], c["hidden_dim"], c["dim_feedforward"], c["expansion"], c["num_encoder_layers"], c["nhead"]
    )

    def run(model, inputs, case, report):
        return {f"p{s}": x for s, x in zip(c["feat_strides"], model(inputs))}

    check_network(report, golden, model, model.convert, run)


def check_anchors(report: Report, golden: dict[str, Any], name: str) -> None:
    """Encoder proposals."""
    from mmvit.heads import make_anchors

    for case in golden["anchors"]:
        height, width = case["input_hw"]
        anchors, valid = make_anchors([(height // s, width // s) for s in (8, 16, 32)])
        report.equal("tokens", anchors.shape[1], case["tokens"])
        report.equal("valid", int(valid.sum()), case["valid"])
        invalid = (~valid[0, :, 0]).nonzero().flatten().tolist()
        report.equal("invalid", [len(invalid), invalid[: len(case["first_invalid"])]], [case["invalid"], case["first_invalid"]])
        report.equal("infinite where invalid", bool((anchors.isinf() == ~valid).all()), True)
        report.output("anchors", anchors.masked_fill(~valid, 0).double(), case["unact_anchors_zeroed_where_invalid"], TOLERANCE)
        report.cases += 1


class RecordedDraws:
    """The random numbers that a denoising golden lists, in their order."""

    def __init__(self, draws: list[dict[str, Any]]):
        self.draws = list(draws)

    def _next(self, kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
        draw = self.draws.pop(0)
        if draw["kind"] != kind or list(shape) != draw["shape"]:
            raise UserError(f"Denoising drew {kind} {list(shape)} where the golden draws {draw['kind']} {draw['shape']}.")
        return draw

    def uniform(self, shape):
        import torch

        draw = self._next("uniform", shape)
        return torch.from_numpy(np.random.RandomState(draw["seed"]).random_sample(shape).astype(np.float32))

    def integers(self, low, high, shape):
        import torch

        draw = self._next("integer", shape)
        return torch.from_numpy(np.random.RandomState(draw["seed"]).randint(draw["low"], draw["high"], shape))


def targets_of(listed: list[dict[str, Any]], dtype: Any) -> list[Any]:
    """Targets from a golden's labels and boxes."""
    import torch

    from mmvit.matching import Target

    return [
        Target(torch.tensor(t["labels"], dtype=torch.long), torch.tensor(t["boxes"], dtype=torch.float32).view(-1, 4).to(dtype))
        for t in listed
    ]


def check_denoising(report: Report, golden: dict[str, Any], name: str) -> None:
    """Contrastive denoising queries from recorded draws."""
    import torch

    from mmvit.matching import make_denoising

    for case in golden["denoising"]:
        made = make_denoising(
            targets_of(case["targets"], torch.float32),
            80,
            case["num_queries"],
            case["num_denoising"],
            case["label_noise_ratio"],
            case["box_noise_scale"],
            draws=RecordedDraws(case["draws"]),
        )
        report.equal("labels", made.labels.tolist(), case["query_labels"])
        report.compare("boxes", made.box_logits, case["query_boxes_unact"])
        report.equal("positives", [q.tolist() for q, _ in made.matches], case["dn_positive_idx"])
        report.equal("groups", made.groups, case["dn_num_group"])
        report.equal("split", [made.labels.shape[1], len(made.mask) - made.labels.shape[1]], case["dn_num_split"])
        mask = made.mask.int()
        report.equal("mask", [list(mask.shape), int(mask.sum())], [case["attn_mask_shape"], case["attn_mask_true"]])
        if "attn_mask_rows" in case:
            report.equal("mask rows", ["".join(map(str, row)) for row in mask.tolist()], case["attn_mask_rows"])
        else:
            report.equal("mask row sums", mask.sum(1).tolist(), case["attn_mask_row_sums"])
        report.cases += 1


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


#: The transforms that goldens apply to normal noise, by their text.
TRANSFORMS = {
    "1.5 * a - 2.5": lambda a: 1.5 * a - 2.5,
    "np.concatenate([sigmoid(a[..., :2]), 0.04 + 0.4 * sigmoid(a[..., 2:])], -1)": lambda a: np.concatenate(
        [_sigmoid(a[..., :2]), 0.04 + 0.4 * _sigmoid(a[..., 2:])], -1
    ),
}


def prediction_of(spec: dict[str, Any]) -> Any:
    """A prediction tensor: transformed noise with overridden entries."""
    import torch

    if spec["transform"] not in TRANSFORMS:
        raise UserError(
            f"The golden uses the transform {spec['transform']!r}, which is not known. Add it to check_golden.TRANSFORMS."
        )
    array = np.asarray(TRANSFORMS[spec["transform"]](fill_image(spec["shape"], spec["seed"])), dtype=np.float32)
    for *index, value in spec["overrides"]:
        array[tuple(index)] = value
    return torch.from_numpy(array).double().requires_grad_(True)


def check_losses(report: Report, golden: dict[str, Any], name: str) -> None:
    """Assignment, losses and gradients of the set-prediction objective."""
    import torch

    from mmvit.matching import MatchCost, hungarian_match

    targets = targets_of(golden["targets"], torch.float64)
    settings = golden["settings"]
    cost = MatchCost(
        settings["matcher"]["cost_class"],
        settings["matcher"]["cost_bbox"],
        settings["matcher"]["cost_giou"],
        settings["matcher"]["alpha"],
        settings["matcher"]["gamma"],
    )
    for layer, expected in golden.get("assignment", {}).items():
        spec = golden["predictions"][layer]
        match = hungarian_match(prediction_of(spec["logits"])[None], prediction_of(spec["boxes"])[None], targets, cost)[0]
        report.equal(f"assignment of {layer}", [[q.tolist(), t.tolist()] for q, t in match], expected)
    for key, case in golden["cases"].items():
        _check_loss_case(report, golden, key, case, targets, cost)
        report.cases += 1


def _check_loss_case(
    report: Report, golden: dict[str, Any], key: str, case: dict[str, Any], targets: list[Any], cost: Any
) -> None:
    import torch

    from mmvit.heads import DETRCriterion
    from mmvit.matching import Denoising

    made = {layer: (prediction_of(s["logits"]), prediction_of(s["boxes"])) for layer, s in golden["predictions"].items()}
    listed = case["losses"]
    aux = sorted((k for k in made if k.startswith("aux_")), key=lambda k: int(k[4:]))
    dn = sorted((k for k in made if k.startswith("dn_")), key=lambda k: int(k[3:]))
    use_aux, use_dn = any("_aux_" in k for k in listed), any("_dn_" in k for k in listed)
    options = {"losses": ("focal", "bce") if "loss_focal" in listed else ("vfl", "boxes")}
    text = case.get("settings", "")
    options["share_matches"] = "share_matched_indices=True" in text
    weight = re.search(r"boxes_weight_format='(\w+)'", text)
    options["box_weight"] = weight and weight.group(1)
    criterion = DETRCriterion(
        alpha=golden["settings"]["criterion"]["alpha"], gamma=golden["settings"]["criterion"]["gamma"], cost=cost, **options
    )
    denoising = None
    if use_dn:
        meta = golden["dn_meta"]
        queries = [torch.tensor(q, dtype=torch.long) for q in meta["dn_positive_idx"]]
        matches = [(q, torch.arange(len(t.labels)).repeat(meta["dn_num_group"])) for q, t in zip(queries, targets)]
        denoising = Denoising(torch.zeros(0), torch.zeros(0), torch.zeros(0), matches, meta["dn_num_group"])
    losses = criterion(
        [made[k] for k in (aux if use_aux else [])] + [made["main"]],
        targets,
        list(range(len(targets))),
        encoder=made["enc"] if use_aux else None,
        denoising=denoising,
        denoising_layers=[made[k] for k in dn] if use_dn else (),
    )
    # version 1 counts the encoder as one more auxiliary layer
    encoder = "_enc_0" if any("_enc_0" in k for k in listed) else f"_aux_{len(aux)}"
    losses = {k.replace("_enc_0", encoder): v for k, v in losses.items()}
    report.equal(f"{key}: names", sorted(losses), sorted(listed))
    for loss, expected in listed.items():
        if loss in losses:
            report.compare(f"{key} {loss}", losses[loss].detach(), expected, max(abs(expected), 1e-3))
    total = sum(losses.values())
    report.compare(f"{key} total", total.detach(), case["total"])
    total.backward()
    for entry, expected in case.get("grad", {}).items():
        layer, part = entry.split(".")
        report.output(f"{key} gradient of {entry}", made[layer][part == "pred_boxes"].grad, expected, TOLERANCE)


def check_postprocess(report: Report, golden: dict[str, Any], name: str) -> None:
    """Top detections in pixels."""
    import torch

    from mmvit.heads import select_detections

    spec, settings = golden["predictions"]["main"], golden["settings"]
    sizes = torch.tensor(settings["orig_target_sizes"], dtype=torch.float64)
    found = select_detections(prediction_of(spec["logits"]), prediction_of(spec["boxes"]), sizes, settings["num_top_queries"])
    for (boxes, scores, labels), expected in zip(found, golden["results"], strict=True):
        report.equal("labels", labels.tolist(), expected["labels"])
        report.compare("scores", scores.detach(), expected["scores"])
        report.compare("boxes", boxes.detach(), expected["boxes"])
        report.cases += 1


# ---------------------------------------------------------------------------------------------------------------- semantic


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


# ------------------------------------------------------------------------------------------------------------------- SLAB


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

    from mmvit.backbones import create_backbone
    from mmvit.backbones.slab import RepBN
    from mmvit.layers.reparam import deploy

    model = create_backbone(name)
    for i in range(4):
        delattr(model, f"norm{i}")
    model.norm = RepBN(model.feature_info[-1][0])

    def convert(state):
        return {**model.convert(state), **{k: v for k, v in state.items() if k.startswith("norm.")}}

    def run(model, inputs, case, report):
        for (_, stride), layer in zip(model.feature_info, model.layers):
            for block in layer.blocks:
                if min(inputs[0].shape[2:]) <= stride * block.attn.window[0]:
                    block.attn.shift = 0
        maps = model.stages(inputs[0])
        merged = deploy(copy.deepcopy(model))
        merged.patch_embed.proj.bias.sub_((model.patch_embed.norm.alpha * model.patch_embed.proj.bias).detach())
        outputs = {f"stage{i}": x for i, x in enumerate(maps)}
        outputs |= {"normed": model.norm(maps[-1]), "merged_normed": model.norm(merged.stages(inputs[0])[-1])}
        return {key: x.permute(0, 3, 1, 2) for key, x in outputs.items()}

    check_network(report, golden, model, convert, run)


#: Golden name (regular expression) -> check; the first that matches is used, a backbone of that name otherwise.
CHECKS: list[tuple[str, Callable[[Report, dict[str, Any], str], None]]] = [
    (r"rtdetr_presnet\w+", lambda report, golden, name: check_backbone(report, golden, name.removeprefix("rtdetr_"))),
    (r"rtdetr_hybrid_encoder_\w+", check_hybrid_encoder),
    (r"rtdetr_anchors\w*", check_anchors),
    (r"rtdetr_denoising\w*", check_denoising),
    (r"rtdetr(v2)?_losses\w*", check_losses),
    (r"rtdetr_postprocess\w*", check_postprocess),
    (r"rtdetr(v2)?_(r\d+vd|hgnetv2)\w*", check_rtdetr),
    (r"swin_[ts]_prepbn_merge", check_slab_merged),
    (r"(swin|pvt)_[tsm]_prepbn|slab_(swin|pvt)_[tsmb]", check_slab),
    (r"vw(city)?head_\w+", check_vw_head),
    (r"upernet_head_\w+", check_mmseg_heads),
    (r"(upernet|segformer|vwformer)_\w+", check_segmenter),
]


def check_file(path: str | Path) -> Report:
    """Check one golden.

    Raises:
        UserError: the file is not a golden, or nothing here has its name.
    """
    try:
        golden = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable golden: {error}.") from None
    if not isinstance(golden, dict) or "name" not in golden:
        raise UserError(f"{path} is not a golden: it has no 'name'.")
    report = Report(golden["name"])
    check = next((check for pattern, check in CHECKS if re.fullmatch(pattern, golden["name"])), check_backbone)
    check(report, golden, golden["name"])
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mmvit check``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="golden files (json)")


def run(args: argparse.Namespace) -> int:
    """Print one line per golden; 1 if any fails."""
    failed = 0
    for path in args.files:
        try:
            report = check_file(path)
        except UserError as error:
            report = Report(Path(path).stem, failures=[str(error)])
        print(report.line(), flush=True)
        failed += not report.passed
    return int(failed > 0)
