"""RT-DETR: networks, anchors, denoising, losses, post-processing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mmvit.errors import UserError

from .core import TOLERANCE, Report, check_keys, check_network, fill_image


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
