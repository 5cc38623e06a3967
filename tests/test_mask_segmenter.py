"""Mask classification: networks learn, post-processing equals its definition, large images stay small in memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from pycocotools import mask as coco

from mmvit.architectures import MaskSegmenter, create_model, is_model
from mmvit.architectures import rows as rows_module
from mmvit.architectures.mask_inference import instances, panoptic_by_argmax, panoptic_by_order, semantic_scores
from mmvit.architectures.rows import Rows
from mmvit.benchmark import peak_memory
from mmvit.data.structures import DataSample
from mmvit.errors import UserError
from mmvit.heads import KMaXCriterion, MaskCriterion, MaskTarget
from mmvit.heads.kmax_decoder import assigned_sums
from mmvit.heads.query_decoder import MaskedAttention, PrototypeAttention
from mmvit.layers.drop import DropPath
from mmvit.losses import NonFiniteError

THINGS = (0, 1, 2)


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(rows_module, "_BAND", 3000)  # several bands, also of small maps


def blocks(count, height, width, cell=8):
    """Blocky random maps (count, height, width)."""
    coarse = torch.randn(count, -(-height // cell), -(-width // cell))
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width]


def sample(index, height, width, count, original=None):
    found = DataSample(metainfo=dict(img_id=index, ori_shape=original or (height, width), img_shape=(height, width)))
    found.gt_segments = InstanceData(labels=torch.randint(0, 6, (count,)), masks=blocks(count, height, width) > 0.3)
    return found


def picture(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


PAIRS = [
    ("mask2former", "swin_debug"),
    ("mask2former", "resnet_debug"),
    ("pem", "stdc_debug"),
    ("pem", "mit_debug"),
    ("kmax", "resnet_debug"),
    ("kmax", "convnext_debug"),
    ("vwmask2former", "swin_debug"),
    ("vwdeformmask2former", "pvt_debug"),
]


@pytest.mark.parametrize(("arch", "backbone"), PAIRS)
def test_every_method_learns(arch, backbone):
    criterion = dict(num_points=(64, 64)) if arch == "kmax" else dict(num_points=112)
    model = MaskSegmenter(arch, 6, things=THINGS, backbone=backbone, criterion=criterion).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    data = dict(inputs=[picture(64, 96), picture(56, 64)], data_samples=[sample(0, 64, 96, 4), sample(1, 56, 64, 3)])
    batch = model.data_preprocessor(data, training=True)
    assert batch["inputs"].shape == (2, 3, 64, 96) and batch["data_samples"][1].gt_segments.masks.shape == (3, 64, 96)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals, reached = [], set()
    for _ in range(6):
        torch.manual_seed(1)
        losses = model(**batch, mode="loss")
        optimizer.zero_grad()
        total = sum(losses.values())
        total.backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        totals.append(float(total.detach()))
    assert {n for n, _ in model.named_parameters()} == reached  # scales that start at 0 let gradients through from step 2 on
    assert totals[-1] < totals[0] and len([k for k in losses if k.startswith("loss_ce")]) == len(model.head.layers) + (
        arch != "kmax"
    ) + (arch == "kmax")
    model.eval()
    found = model.test_step(dict(inputs=[picture(45, 71)], data_samples=[sample(0, 45, 71, 2, original=(90, 33))]))[0]
    assert found.pred_panoptic_seg.data.shape == found.pred_sem_seg.data.shape == (1, 90, 33)
    assert len(found.pred_instances.masks) == len(found.pred_instances.scores)
    assert set(found.pred_panoptic_seg.data.unique().tolist()) <= {0, *(s["id"] for s in found.segments_info)}


def test_targets_without_objects_and_values_that_are_not_finite():
    for arch in ("mask2former", "kmax"):
        model = MaskSegmenter(arch, 6, backbone="resnet_debug").train()
        empty = sample(3, 64, 64, 0)
        batch = model.data_preprocessor(dict(inputs=[picture(64, 64)] * 2, data_samples=[empty, sample(4, 64, 64, 2)]), True)
        assert torch.isfinite(sum(model(**batch, mode="loss").values()))
        next(model.neck.parameters()).data[:] = float("nan")
        with pytest.raises(NonFiniteError, match="not finite"):
            model(**batch, mode="loss")


def test_names_and_errors():
    assert is_model("mask2former_swin_tiny_ade20k_sem") and is_model("kmax_convnext_tiny_coco")
    assert create_model("pem_stdc_debug_cityscapes_sem").outputs == ("semantic",)
    neck = dict(widths=(8,) * 5, depths=(1,) * 5, kinds=("axial", *["bottleneck"] * 4))
    city = create_model("kmax_resnet_debug_cityscapes", neck=neck)
    assert city.head.num_queries == 256 and len(city.backbone.feature_info) == 5 and not city.auxiliary_head.fine
    with pytest.raises(UserError, match="Did you mean 'panoptic'"):
        MaskSegmenter("pem", 6, backbone="stdc_debug", outputs=("panoptik",))
    with pytest.raises(UserError, match="no method 'maskformer'"):
        MaskSegmenter("maskformer", 6)
    with pytest.raises(UserError, match="more than model.data_preprocessor.size"):
        MaskSegmenter("kmax", 6, backbone="resnet_debug", data_preprocessor=dict(size=33)).test_step(
            dict(inputs=[picture(64, 64)], data_samples=[sample(0, 64, 64, 1)])
        )


# ---------------------------------------------------------------------------------------------------------------- decoders


def test_masked_attention_by_definition():
    layer = MaskedAttention(16, 2)
    query, pos_q, memory, pos = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 16, 3, 4), torch.randn(1, 12, 16)
    masks = torch.randn(2, 5, 3, 4)
    masks[0, 1] = -1.0  # an empty mask: sees everything
    reference = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    reference.load_state_dict(layer.state_dict())
    tokens = memory.flatten(2).transpose(1, 2)
    blocked = masks.flatten(2) < 0
    blocked = blocked & ~blocked.all(-1, keepdim=True)
    expected, _ = reference(query + pos_q, tokens + pos, tokens, attn_mask=blocked.repeat_interleave(2, 0))
    torch.testing.assert_close(layer(query, pos_q, memory, pos, masks), expected)


def test_prototypes_are_the_most_similar_unblocked_pixels():
    layer = PrototypeAttention(8, 2)
    pixels, query, masks = torch.randn(2, 12, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 12)
    masks[0, 1] = -1.0  # one empty mask: the first pixel
    masks[1] = -1.0  # all masks of an image empty: nothing is blocked
    found = layer.most_similar(pixels, query, masks)
    for b in range(2):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            for q in range(3):
                similarity = pixels[b, :, part] @ query[b, q, part]
                if b == 0:
                    similarity[masks[b, q] < 0] = -float("inf")
                expected = 0 if (b, q) == (0, 1) else int(similarity.argmax())
                assert int(found[b, head, q]) == expected


def test_kmeans_step_sums_the_pixels_of_each_query():
    values, masks = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    expected = torch.zeros(2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                expected[b, :, masks[b, :, y, x].argmax()] += values[b, :, y, x]
    torch.testing.assert_close(assigned_sums(values, masks), expected)
    assert assigned_sums(values.bfloat16(), masks).dtype == torch.float32


def test_perfect_predictions_have_small_losses():
    labels, masks = torch.tensor([0, 2, 1]), torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, :16], masks[1, 16:, :16], masks[2, 16:, 16:] = True, True, True
    logits = torch.full((1, 5, 4), -10.0)
    logits[0, 3:, 3] = 10
    logits[0, [0, 1, 2], labels] = 10
    prediction = torch.full((1, 5, 32, 32), -20.0)
    prediction[0, :3][masks] = 20
    from mmvit.heads.kmax_decoder import KMaXPrediction
    from mmvit.heads.query_decoder import MaskPrediction

    target = [MaskTarget(labels, masks)]
    losses = MaskCriterion(num_points=256)([MaskPrediction(logits, prediction)], target, [0])
    worse = MaskCriterion(num_points=256)([MaskPrediction(-logits, prediction.roll(5, -1))], target, [0])
    assert float(losses["loss_ce"]) < 1e-3 and float(losses["loss_dice"]) < 0.5  # uncertain points lie on the borders
    assert all(losses[k] < 0.7 * worse[k] for k in losses), (losses, worse)
    features = F.normalize(torch.randn(1, 8, 32, 32), dim=1)
    losses = KMaXCriterion(num_points=(64, 64))([KMaXPrediction(logits, prediction, features)], target, [0])
    assert all(float(losses[f"loss_{k}"]) < 1e-3 for k in ("ce", "mask", "dice")), losses
    assert KMaXCriterion().matched(KMaXPrediction(logits, prediction, features), target)[0][0].tolist() == [0, 1, 2]


# ---------------------------------------------------------------------------------------------------------- post-processing


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(37, 50), (9, 13), (64, 5), (9, 40), (1, 1)])
def test_rows_are_those_of_the_whole_map(align, size):
    x = torch.randn(4, 9, 13, dtype=torch.float64)
    whole = F.interpolate(x[None], size, mode="bilinear", align_corners=align)[0]
    found = Rows.of(x).resized(*size, align)
    torch.testing.assert_close(torch.cat([band for _, band in found.bands()], 1), whole)
    twice = Rows.of(x).resized(*size, align).cropped(max(1, size[0] - 3), size[1]).resized(21, 17, align)
    whole = F.interpolate(whole[None, :, : max(1, size[0] - 3)], (21, 17), mode="bilinear", align_corners=align)[0]
    torch.testing.assert_close(torch.cat([band for _, band in twice.bands()], 1), whole)


def predictions(queries=12, classes=5, size=(40, 56)):
    logits = torch.randn(queries, classes + 1, dtype=torch.float64)
    logits[torch.arange(queries), torch.randint(0, classes, (queries,))] += 6
    masks = 4 * blocks(queries, *size).double() + 0.3 * torch.randn(queries, *size, dtype=torch.float64)
    masks[1], masks[3] = masks[0] + 0.1, masks[2] - 0.1  # rivals
    return logits, masks


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_by_argmax_by_definition(seed):
    torch.manual_seed(seed)
    logits, masks = predictions()
    masks = masks - 5  # smaller masks, which keep most of themselves
    found = panoptic_by_argmax(logits, Rows.of(masks), THINGS, 0.8, 0.6)
    scores, labels = logits.softmax(-1).max(-1)
    kept = [q for q in range(len(logits)) if labels[q] != 5 and scores[q] > 0.8]
    probability = masks.sigmoid()
    winner = torch.stack([scores[q] * probability[q] for q in kept]).argmax(0)
    expected, segments, stuff = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    for k, q in enumerate(kept):
        won, original = winner == k, probability[q] >= 0.5
        if not (won & original).any() or won.sum() / original.sum() < 0.6:
            continue
        label = int(labels[q])
        if label in stuff:
            expected[won & original] = stuff[label]
            continue
        segments.append((len(segments) + 1, label))
        expected[won & original] = len(segments)
        if label not in THINGS:
            stuff[label] = len(segments)
    assert torch.equal(found.ids, expected) and [(s["id"], s["label"]) for s in found.segments] == segments and segments


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_by_order_by_definition(seed):
    torch.manual_seed(seed)
    logits, masks = predictions()
    settings = dict(thing_threshold=0.6, stuff_threshold=0.5, overlap_threshold=0.7, pixel_threshold=0.4, mask_power=1.0)
    found = panoptic_by_order(logits, Rows.of(masks), THINGS, **settings)
    scores, labels = logits.softmax(-1)[:, :-1].max(-1)
    probability = masks.softmax(0)
    binary = probability > 0.4
    quality = torch.stack([p[b].mean() if b.any() else p.new_zeros(()) for p, b in zip(probability, binary)])
    expected, segments, stuff = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    taken = torch.zeros(masks.shape[1:], dtype=torch.bool)
    for q in (scores * quality).argsort(descending=True, stable=True).tolist():
        label, new = int(labels[q]), binary[q] & ~taken
        if scores[q] <= (0.6 if label in THINGS else 0.5) or not binary[q].any() or new.sum() <= 0.7 * binary[q].sum():
            continue
        taken |= new
        if label in stuff:
            expected[new] = stuff[label]
            continue
        segments.append((len(segments) + 1, label))
        expected[new] = len(segments)
        if label not in THINGS:
            stuff[label] = len(segments)
    assert torch.equal(found.ids, expected) and [(s["id"], s["label"]) for s in found.segments] == segments and segments
    with pytest.raises(UserError, match="above 1/3"):
        panoptic_by_order(logits, Rows.of(masks), THINGS, pixel_threshold=0.3)


@pytest.mark.parametrize("softmax", [False, True])
def test_instances_and_semantic_scores_by_definition(softmax):
    logits, masks = predictions()
    probability = masks.softmax(0) if softmax else masks.sigmoid()
    classes = logits.softmax(-1)[:, :-1]
    scores = torch.cat([band for _, band in semantic_scores(logits, Rows.of(masks), softmax).bands()], 1)
    torch.testing.assert_close(scores, (classes.T @ probability.flatten(1)).view(5, *masks.shape[1:]))
    found = instances(logits, Rows.of(masks), softmax, things=THINGS, top=20)
    inside = probability > 0.4 if softmax else masks > 0
    ranked = sorted(((float(classes[q, k]), q, k) for q in range(12) for k in range(5)), reverse=True)[:20]
    ranked = [(s, q, k) for s, q, k in ranked if k in THINGS]
    assert found.labels.tolist() == [k for _, _, k in ranked]
    for (score, q, _), value, code, box in zip(ranked, found.scores, found.masks, found.bboxes):
        mask = inside[q]
        assert float(value) == pytest.approx(score * float((probability[q] * mask).sum()) / (int(mask.sum()) + 1e-6), abs=1e-9)
        assert np.array_equal(coco.decode(code).astype(bool), mask.numpy())
        if mask.any():
            y, x = mask.nonzero(as_tuple=True)
            assert box.tolist() == [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


@pytest.mark.parametrize("kmax", [False, True])
def test_large_images_are_processed_in_bands(kmax, monkeypatch):
    """1024 x 2048 pixels and 200 queries: the masks alone would take 1.6 GiB."""
    monkeypatch.setattr(rows_module, "_BAND", 1 << 24)
    logits, masks = torch.randn(200, 20), 4 * blocks(200, 256, 512)
    logits[torch.arange(200), torch.randint(0, 19, (200,))] += 8

    def run():
        rows = Rows.of(masks).resized(1024, 2048)
        rule = panoptic_by_order if kmax else panoptic_by_argmax
        rule(logits, rows, range(11, 19))
        instances(logits, rows, kmax, range(11, 19))
        assert sum(band.shape[1] for _, band in semantic_scores(logits, rows, kmax).bands()) == 1024

    assert peak_memory(run, torch.device("cpu")) < 0.7 * 2**30


def test_a_fifth_map_needs_a_backbone_that_has_one():
    with pytest.raises(UserError, match="swin_debug.*behind its stem.*resnet"):
        MaskSegmenter("kmax", 6, backbone="swin_debug", stem_map=True)
