"""Mask classifiers: networks and their parts, losses, post-processing."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from . import mask_arrays as arrays
from .core import TOLERANCE, Report, check_network, fill_image


def check_mask_segmenter(report: Report, golden: dict[str, Any], name: str) -> None:
    """A whole Mask2Former, PEM or kMaX-DeepLab: features, pixel decoder, all predictions."""
    from mmvit.architectures import create_model

    norm = "backbone.stem.conv1.norm.weight"
    frozen = norm in golden.get("kept", {}) or norm in golden.get("buffers", {})
    resnet = re.search(r"_r(\d+)_", name)
    classifiers = r"predictor\.(class_embed|_predcitor\._transformer_class_head\.conv)\.weight$"
    classes = next(shape[0] for key, shape in golden["filled"].items() if re.search(classifiers, key)) - 1
    settings = {"backbone": dict(name=f"resnet_{resnet[1]}", freeze_norm=frozen)} if resnet else {}
    model = create_model(name, num_classes=classes, **settings)
    if not any("_auxiliary_semantic_predictor" in key for key in golden["filled"]):
        model.auxiliary_head = None

    def run(model, inputs, case, report):
        maps = model.backbone(inputs[0])
        fine, coarse = model.neck(maps)
        found = {f"res{i + 2}": x for i, x in enumerate(maps[-4:])} | {"stem": maps[0]}
        found |= {"mask_features": fine, "pixel_decoder_last": fine}
        found |= {f"pixel_decoder_os{32 >> i}": x for i, x in enumerate(coarse)}
        predictions = model.head(fine, coarse, all_layers=True)
        for i, prediction in enumerate(predictions):
            prefix = "" if i + 1 == len(predictions) else f"aux{i}_"
            found |= {f"{prefix}pred_logits": prediction.logits, f"{prefix}pred_masks": prediction.masks}
            if hasattr(prediction, "features"):
                found[f"{prefix}pixel_feature"] = prediction.features
        if model.auxiliary_head is not None:
            found["aux_semantic_pred"] = model.auxiliary_head(maps[-4:])
        return {key: found[key] for key in case["outputs"] if key in found}

    check_network(report, golden, model, model.convert, run)


def check_axial_block(report: Report, golden: dict[str, Any], name: str) -> None:
    """One axial block of kMaX-DeepLab's pixel decoder."""
    from mmvit.layers.axial import NORM_EPS
    from mmvit.layers.conv import set_batch_norms
    from mmvit.necks import KMaXPixelDecoder
    from mmvit.necks.kmax_pixel_decoder import Block

    filled = golden["filled"]
    model = Block(filled["_conv1_bn_act.conv.weight"][1], filled["_conv3_bn.conv.weight"][0] // 4, "axial")
    set_batch_norms(model, NORM_EPS)

    def run(model, inputs, case, report):
        seen = []
        hook = model.attention.register_forward_hook(lambda module, args, output: seen.append(output))
        out = model(inputs[0])
        hook.remove()
        return {"out": out, "attention": seen[0]}

    check_network(report, golden, model, KMaXPixelDecoder.convert, run)


def check_kmeans_layer(report: Report, golden: dict[str, Any], name: str) -> None:
    """One layer of kMaX-DeepLab's decoder; its queries are an image of seed 1001."""
    import torch

    from mmvit.heads import KMaXDecoder
    from mmvit.heads.kmax_decoder import KMeansLayer
    from mmvit.layers.axial import NORM_EPS
    from mmvit.layers.conv import set_batch_norms

    filled = golden["filled"]
    classes = filled["_predcitor._transformer_class_head.conv.weight"][0] - 1
    model = KMeansLayer(filled["_pixel_conv1_bn_act.conv.weight"][1], classes)
    set_batch_norms(model, NORM_EPS)

    def run(model, inputs, case, report):
        shape = case["outputs"]["query_feature"]["shape"]
        queries, found = model(torch.from_numpy(fill_image(shape, 1001)).double(), inputs[0])
        return {
            "query_feature": queries,
            "class_logits": found.logits,
            "mask_logits": found.masks,
            "pixel_feature": found.features,
        }

    check_network(report, golden, model, KMaXDecoder.convert, run)


def check_kmax_backbone(report: Report, golden: dict[str, Any], name: str) -> None:
    """ConvNeXt with kMaX-DeepLab's padding."""
    from mmvit.backbones import create_backbone

    arch = re.fullmatch(r"kmax_(\w+)_backbone", name).group(1)
    model = create_backbone(arch, kmax_padding=True)

    def run(model, inputs, case, report):
        return {f"res{i + 2}": x for i, x in enumerate(model(inputs[0]))}

    check_network(report, golden, model, model.convert, run)


# ------------------------------------------------------------------------------------------------------------------ losses


class FixedDraws:
    """The recorded random numbers: the same for every call with one shape."""

    def uniform(self, shape):
        import torch

        return torch.from_numpy(arrays.uniform(shape)).double()


def _batch(make: Any, settings: dict[str, Any], batch: int, first: int) -> Any:
    """(batch, ...) float64 with gradients; image b has seed ``settings["seed"] + first + b``."""
    import numpy as np
    import torch

    made = np.stack([make(**{**settings, "seed": settings["seed"] + first + b}) for b in range(batch)])
    return torch.from_numpy(made).double().requires_grad_(True)


def _targets(golden: dict[str, Any]) -> list[Any]:
    import torch

    from mmvit.heads import MaskTarget

    settings, targets = golden["case"]["segments"], []
    for b in range(golden["case"]["batch"]):
        labels, masks = arrays.segments(**{**settings, "seed": settings["seed"] + b})
        targets.append(MaskTarget(torch.from_numpy(labels), torch.from_numpy(masks)))
    return targets


def _predictions(golden: dict[str, Any], kmax: bool) -> list[Any]:
    """Those of the auxiliary layers, then the final one."""
    from mmvit.heads.kmax_decoder import KMaXPrediction
    from mmvit.heads.query_decoder import MaskPrediction

    case = golden["case"]
    found = []
    for first in [*(100 * (i + 1) for i in range(case["aux_layers"])), 0]:
        parts = [
            _batch(arrays.class_logits, case["class_logits"], case["batch"], first),
            _batch(arrays.mask_logits, case["mask_logits"], case["batch"], first),
        ]
        if kmax:
            size = dict(channels=128, height=case["mask_logits"]["height"], width=case["mask_logits"]["width"])
            parts.append(_batch(arrays.features, dict(size, seed=case["features_seed"]), case["batch"], first))
        found.append((KMaXPrediction if kmax else MaskPrediction)(*parts))
    return found


def check_mask_losses(report: Report, golden: dict[str, Any], name: str) -> None:
    """Matching, losses and gradients of Mask2Former, PEM and kMaX-DeepLab."""
    import torch

    from mmvit.heads import KMaXCriterion, MaskCriterion

    kmax, case, settings = name.startswith("kmax"), golden["case"], golden["settings"]
    predictions, targets, draws = _predictions(golden, kmax), _targets(golden), FixedDraws()
    expected = golden.get("inputs", {})
    for key, value in (("pred_logits", predictions[-1].logits), ("pred_masks", predictions[-1].masks)):
        if key in expected:
            report.equal(f"digest of {key}", arrays.digest(value.detach().float().numpy()), expected[key]["sha256"])
    weights = settings["weights"]
    ids = list(range(case["batch"]))
    if kmax:
        semantic = _batch(arrays.mask_logits, case["semantic_logits"], case["batch"], 0) if "semantic_logits" in case else None
        criterion = KMaXCriterion(
            weights=tuple(weights[f"loss_{k}"] for k in ("ce", "mask", "dice", "pixel_insdis", "aux_semantic")),
            num_points=(settings["pixel_insdis_sample_k"], settings.get("aux_semantic_sample_k") or None),
            temperatures=(settings["pixel_insdis_temperature"], settings.get("aux_semantic_temperature") or 1.0),
        )
        losses = criterion(predictions, targets, ids, semantic=semantic, draws=draws)
        found = criterion.matched(predictions[-1], targets)
        matched = [found]
        expected_matches = [golden["matched"]]
    else:
        semantic = None
        criterion = MaskCriterion(
            weights=tuple(weights[f"loss_{k}"] for k in ("ce", "mask", "dice")),
            no_object=settings["eos_coef"],
            num_points=settings["num_points"],
            oversample=settings["oversample_ratio"],
            important=settings["importance_sample_ratio"],
        )
        losses = criterion(predictions, targets, ids, draws=draws)
        matched = [criterion.match(p, targets, draws) for p in [predictions[-1], *predictions[:-1]]]
        expected_matches = golden["matched"]
    for layer, (found, wanted) in enumerate(zip(matched, expected_matches, strict=True)):
        report.equal(f"matching {layer}", [[q.tolist(), t.tolist()] for q, t in found], wanted)
    report.equal("names", sorted(losses), sorted(golden["losses_float64"]))
    for key, value in golden["losses_float64"].items():
        if key in losses:
            weight = weights[re.sub(r"_\d+$", "", key)]
            report.compare(key, (losses[key] / weight).detach(), value, max(abs(value), 1e-3))
    total = sum(losses.values())
    report.compare("total", total.detach(), golden["total"])
    total.backward()
    parts = {"pred_logits": "logits", "pred_masks": "masks", "pixel_feature": "features"}
    for key, wanted in golden["grads"].items():
        if key == "aux_semantic_pred":
            gradient = semantic.grad
        else:
            layer, part = re.fullmatch(r"(?:aux(\d+)_)?(\w+)", key).groups()
            gradient = getattr(predictions[-1 if layer is None else int(layer)], parts[part]).grad
        report.output(f"gradient of {key}", torch.as_tensor(gradient), wanted, TOLERANCE)
    report.cases += 1


# --------------------------------------------------------------------------------------------------------- post-processing


def check_mask_postprocess(report: Report, golden: dict[str, Any], name: str) -> None:
    """Semantic, instance and panoptic results of recorded predictions, through the segmenter's own rules."""
    import torch
    from pycocotools import mask as coco

    from mmvit.architectures.dense import label_map_of
    from mmvit.architectures.mask_segmenter import Postprocess

    kmax, case, settings, wanted = name.startswith("kmax"), golden["case"], golden["settings"], golden["outputs"]
    classes = torch.from_numpy(arrays.class_logits(**case["class_logits"])).double()
    masks = torch.from_numpy(arrays.mask_logits(**case["mask_logits"])).double()
    for key, value in (("pred_logits", classes), ("pred_masks", masks)):
        report.equal(f"digest of {key}", arrays.digest(value.float().numpy()), golden["inputs"][key]["sha256"])
    sample = SimpleNamespace(ori_shape=tuple(case["height_width"]), img_shape=_input_size(golden, kmax))
    things = golden["thing_classes"] if golden["thing_classes"] is not None else range(golden["num_classes"])
    process = Postprocess(classes, masks, tuple(golden["padded_input"]), sample, kmax, tuple(things))
    if settings["semantic_on"]:
        scores = process.semantic(scores_first=not settings["sem_seg_postprocess_before_inference"])
        whole = torch.cat([band for _, band in scores.bands()], 1)
        report.output("sem_seg", whole, wanted["sem_seg"], TOLERANCE)
        report.equal("argmax", arrays.digest(label_map_of(scores, classes)[0].numpy()), wanted["sem_seg_argmax"]["sha256"])
    if settings["panoptic_on"]:
        found = process.panoptic(**_thresholds(settings, kmax))
        report.equal("panoptic_seg", arrays.digest(found.ids.numpy()), wanted["panoptic_seg"]["sha256"])
        listed = [dict(id=s["id"], isthing=s["label"] in set(things), category_id=s["label"]) for s in found.segments]
        report.equal("segments_info", listed, wanted["segments_info"])
    if settings["instance_on"]:
        kept = things if settings["panoptic_on"] else None
        found = process.instances(kept, settings["test_topk_per_image"])
        rows = [[float(s), int(k), int(coco.area(m))] for s, k, m in zip(found.scores, found.labels, found.masks)]
        rows.sort(reverse=True)
        recorded = wanted["instances"]["rows"]
        report.equal("instances", len(rows), wanted["instances"]["count"])
        report.equal("instance classes and areas", [r[1:] for r in rows[: len(recorded)]], [r[1:] for r in recorded])
        report.compare("instance scores", [r[0] for r in rows[: len(recorded)]], [r[0] for r in recorded])
    report.cases += 1


def _input_size(golden: dict[str, Any], kmax: bool) -> tuple[int, int]:
    """The part of the padded input that is image; kMaX-DeepLab takes it from the original size."""
    return tuple(golden["padded_input"] if kmax else golden["case"]["image"])


def _thresholds(settings: dict[str, Any], kmax: bool) -> dict[str, float]:
    if not kmax:
        return dict(object_threshold=settings["object_mask_threshold"], overlap_threshold=settings["overlap_threshold"])
    return dict(
        thing_threshold=settings["class_threshold_thing"],
        stuff_threshold=settings["class_threshold_stuff"],
        overlap_threshold=settings["overlap_threshold"],
        pixel_threshold=settings["pixel_confidence_threshold"],
        mask_power=settings["reorder_mask_weight"],
        class_power=settings["reorder_class_weight"],
    )
