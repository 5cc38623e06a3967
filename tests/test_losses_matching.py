"""Boxes, losses, assignment and denoising against values worked out by hand or by brute force."""

import itertools
import math

import pytest
import torch

from mmvit.heads import DETRCriterion, make_anchors, select_detections
from mmvit.losses import (
    NonFiniteError,
    centre_to_corners,
    check_finite,
    corners_to_centre,
    focal_loss,
    inverse_sigmoid,
    iou_and_giou,
    varifocal_loss,
)
from mmvit.matching import MatchCost, Target, TorchDraws, hungarian_match, make_denoising


def test_iou_and_giou_by_hand():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    b = torch.tensor([[1.0, 1, 3, 3], [2, 0, 3, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    iou, giou = iou_and_giou(a, b)
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0, 1, 0]))
    torch.testing.assert_close(giou, torch.tensor([1 / 7 - 2 / 9, -1 / 3, 1, 0]))


def test_box_formats_and_logit_round_trip():
    boxes = torch.rand(50, 4)
    torch.testing.assert_close(corners_to_centre(centre_to_corners(boxes)), boxes)
    torch.testing.assert_close(inverse_sigmoid(boxes).sigmoid(), boxes, atol=2e-5, rtol=0)
    assert torch.isfinite(inverse_sigmoid(torch.tensor([0.0, 1.0, -3.0, 4.0]))).all()


def test_classification_losses_by_hand():
    logits, positive = torch.tensor([[0.0, 2.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    p = 1 / (1 + math.exp(-2))
    expected_vfl = 0.6 * math.log(2) + 0.75 * p**2 * -math.log(1 - p)
    quality = positive * 0.6
    loss = varifocal_loss(logits, quality, positive)
    assert loss.item() == pytest.approx(expected_vfl, rel=1e-5)
    expected_focal = 0.25 * 0.25 * math.log(2) + 0.75 * p**2 * -math.log(1 - p)
    assert focal_loss(logits, positive).item() == pytest.approx(expected_focal, rel=1e-5)
    loss.backward()  # the weight p^2 takes no gradient
    torch.testing.assert_close(logits.grad, torch.tensor([[0.6 * (0.5 - 0.6), 0.75 * p**2 * p]]))


def test_assignment_is_the_cheapest():
    torch.manual_seed(3)
    logits, boxes = torch.randn(2, 1, 6, 4), torch.rand(2, 1, 6, 4)
    target = Target(torch.tensor([0, 3, 3]), torch.rand(3, 4))
    cost = MatchCost()
    for layer, matches in enumerate(hungarian_match(logits, boxes, [target], cost)):
        matrix = cost(logits[layer, 0], boxes[layer, 0], target)
        query, index = matches[0]
        best = min(sum(matrix[q, t] for t, q in enumerate(order)) for order in itertools.permutations(range(6), 3))
        torch.testing.assert_close(matrix[query, index].sum(), best)
        assert sorted(index.tolist()) == [0, 1, 2]


def test_more_objects_than_queries_and_no_objects():
    logits, boxes = torch.randn(1, 2, 3, 4), torch.rand(1, 2, 3, 4)
    targets = [
        Target(torch.zeros(5, dtype=torch.long), torch.rand(5, 4)),
        Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)),
    ]
    ((many, none),) = hungarian_match(logits, boxes, targets, MatchCost())
    assert len(many[0]) == 3 and len(none[0]) == 0


def test_half_precision_is_matched_in_float32():
    logits, boxes = torch.randn(1, 1, 20, 4), torch.rand(1, 1, 20, 4)
    target = Target(torch.tensor([1, 2]), torch.rand(2, 4))
    full = hungarian_match(logits.bfloat16().float(), boxes.bfloat16().float(), [target], MatchCost())[0][0]
    half = hungarian_match(logits.bfloat16(), boxes.bfloat16(), [target], MatchCost())[0][0]
    assert torch.equal(full[0], half[0]) and torch.equal(full[1], half[1])


def test_criterion_without_objects_pushes_all_scores_down():
    logits, boxes = torch.zeros(1, 5, 3, requires_grad=True), torch.rand(1, 5, 4, requires_grad=True)
    losses = DETRCriterion()([(logits, boxes)], [Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))], ["a"])
    assert losses["loss_vfl"].item() == pytest.approx(15 * 0.75 * 0.25 * math.log(2), rel=1e-5)
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    sum(losses.values()).backward()
    assert (logits.grad > 0).all() and (boxes.grad == 0).all()


def test_non_finite_names_the_tensor_and_the_images():
    tensors = {"fine": torch.ones(2, 3), "broken": torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])}
    with pytest.raises(NonFiniteError, match=r"broken is not finite \(images \[8\]\)") as caught:
        check_finite(tensors, [7, 8])
    assert caught.value.image_ids == [8] and caught.value.tensor_name == "broken"
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="logits of decoder layer 0"):
        DETRCriterion()([(logits, torch.rand(1, 2, 4))], [Target(torch.tensor([0]), torch.rand(1, 4))], ["img"])


def test_denoising_positives_stay_inside_and_negatives_leave():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.1, 0.2]])
    target = Target(torch.tensor([1, 2]), boxes)
    made = make_denoising([target], 3, 7, 20, 0.5, 1.0, draws=TorchDraws(torch.device("cpu")))
    assert made.groups == 10 and made.labels.shape == (1, 40) and made.mask.shape == (47, 47)
    corners, truth = centre_to_corners(made.box_logits.sigmoid()[0]), centre_to_corners(boxes).repeat(20, 1)
    moved = (corners - truth).abs() / boxes.repeat(20, 1)[:, [2, 3, 2, 3]]
    negative = (torch.arange(40) // 2) % 2 == 1
    whole = (made.box_logits.sigmoid()[0, :, 2:] > 1e-3).all(-1)  # corners that passed each other leave a box without area
    assert (
        (moved[~negative] <= 0.5 + 1e-3).all()
        and (moved[negative & whole] >= 0.5 - 1e-3).all()
        and (negative & whole).sum() > 5
    )
    query, index = made.matches[0]
    assert not negative[query].any() and torch.equal(index, torch.tensor([0, 1] * 10))


def test_denoising_without_objects():
    empty = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    draws = TorchDraws(torch.device("cpu"))
    assert make_denoising([empty], 3, 4, draws=draws) is None
    group = make_denoising([empty, empty], 3, 4, draws=draws, empty_group=True)
    assert group.labels.tolist() == [[3, 3], [3, 3]] and group.groups == 1 and all(len(q) == 0 for q, _ in group.matches)


def test_anchors_of_a_tiny_map():
    anchors, valid = make_anchors([(2, 2), (1, 1)])
    torch.testing.assert_close(
        anchors[0, :4].sigmoid(),
        torch.tensor([[0.25, 0.25, 0.05, 0.05], [0.75, 0.25, 0.05, 0.05], [0.25, 0.75, 0.05, 0.05], [0.75, 0.75, 0.05, 0.05]]),
    )
    torch.testing.assert_close(anchors[0, 4].sigmoid(), torch.tensor([0.5, 0.5, 0.1, 0.1]))
    assert valid.all()


def test_a_query_may_be_detected_twice():
    logits = torch.tensor([[[3.0, 2.0], [-1.0, -2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]]])
    ((corners, scores, labels),) = select_detections(logits, boxes, torch.tensor([[200, 100]]), top=3)
    assert labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, -1.0]).sigmoid())
    torch.testing.assert_close(corners[0], torch.tensor([50.0, 0, 150, 100]))
    torch.testing.assert_close(corners[1], corners[0])
