"""NMS and its relatives against loops that follow the definitions word by word."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmvit.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_boxes(count: int, seed: int = 0, span: float = 100.0, size: float = 30.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * span
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size], 1)
    return boxes, torch.randperm(count, generator=generator).float().add(1) / (count + 1)


def iou(a: list[float], b: list[float], offset: int = 0) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def greedy(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    rows, kept = boxes.tolist(), []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(rows[k], rows[i], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nms_keeps_what_the_loop_keeps(threshold: float, offset: int, dtype: torch.dtype, device: str) -> None:
    boxes, scores = random_boxes(120)
    boxes, scores = boxes.to(device, dtype), scores.to(device)
    assert nms(boxes, scores, threshold, offset).tolist() == greedy(boxes, scores, threshold, offset)


def test_nms_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More boxes than one block: survivors of a block suppress those of later blocks."""
    monkeypatch.setattr("mmvit.ops.suppression._BLOCK", 64)
    monkeypatch.setattr("mmvit.ops.suppression._PAIRS", {"cpu": 1000})
    boxes, scores = random_boxes(400, span=150)
    assert nms(boxes, scores, 0.4).tolist() == greedy(boxes, scores, 0.4)


def test_nms_long_chain() -> None:
    """Each box overlaps only its neighbours: a kept box saves the one after next, all the way down."""
    left = torch.arange(300.0) * 4
    boxes = torch.stack([left, torch.zeros(300), left + 10, torch.ones(300)], 1)
    assert nms(boxes, torch.linspace(1, 0.1, 300), 0.4).tolist() == list(range(0, 300, 2))


def test_nms_limits() -> None:
    boxes, scores = random_boxes(50)
    everything = nms(boxes, scores, 0.5)
    assert nms(boxes, scores, 0.5, max_num=3).tolist() == everything[:3].tolist()
    high = nms(boxes, scores, 0.5, score_threshold=0.6)
    assert high.tolist() == [i for i in everything.tolist() if scores[i] > 0.6]


def test_nms_edge_cases() -> None:
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    points = torch.tensor([[5.0, 5, 5, 5]] * 3)  # no area: IoU 0/0 suppresses nothing
    assert sorted(nms(points, torch.tensor([0.1, 0.3, 0.2]), 0.5).tolist()) == [0, 1, 2]
    assert nms(points, torch.tensor([0.1, 0.3, 0.2]), 0.5, offset=1).tolist() == [1]
    boxes, scores = random_boxes(40)
    assert nms(boxes.half(), scores.half(), 0.5).tolist() == nms(boxes.half().float(), scores.half(), 0.5).tolist()
    assert nms(boxes.t().contiguous().t(), scores, 0.5).tolist() == nms(boxes, scores, 0.5).tolist()


def test_batched_nms_is_nms_of_each_label() -> None:
    boxes, scores = random_boxes(90)
    boxes = boxes - 60  # also negative coordinates
    labels = torch.arange(90) % 4
    kept = batched_nms(boxes, scores, labels, 0.3)
    expected = [
        i
        for label in range(4)
        for i in (labels == label).nonzero()[:, 0][nms(boxes[labels == label], scores[labels == label], 0.3)].tolist()
    ]
    assert sorted(kept.tolist()) == sorted(expected)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    assert batched_nms(boxes[:0], scores[:0], labels[:0], 0.3).tolist() == []


@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_nms_match_groups(threshold: float) -> None:
    boxes, scores = random_boxes(80)
    rows, groups, taken = boxes.tolist(), [], set()
    order = scores.argsort(descending=True).tolist()
    for i in order:
        if i not in taken:
            groups.append(
                [i]
                + [
                    j
                    for j in order
                    if j != i and j not in taken and scores[j] < scores[i] and iou(rows[i], rows[j]) >= threshold
                ]
            )
            taken.update(groups[-1])
    assert [group.tolist() for group in nms_match(boxes, scores, threshold)] == groups
    assert nms_match(boxes[:0], scores[:0], threshold) == []


def soft_loop(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, min_score: float, method: str, offset: int
) -> list[tuple[int, float]]:
    rows, left = boxes.tolist(), dict(enumerate(scores.tolist()))
    result = []
    while left:
        best = max(left, key=left.__getitem__)
        result.append((best, left.pop(best)))
        for i in list(left):
            overlap = iou(rows[best], rows[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < min_score:
                del left[i]
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize(("min_score", "offset"), [(1e-3, 0), (0.2, 1), (2.0, 0)])
def test_soft_nms_follows_the_loop(method: str, min_score: float, offset: int, device: str) -> None:
    boxes, scores = random_boxes(70, seed=3, span=60)
    expected = soft_loop(boxes, scores, 0.3, 0.5, min_score, method, offset)
    dets, kept = soft_nms(boxes.to(device), scores.to(device), 0.3, 0.5, min_score, method, offset)
    assert kept.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4].cpu(), torch.tensor([score for _, score in expected]))
    torch.testing.assert_close(dets[:, :4].cpu(), boxes[kept.cpu()])


def test_soft_nms_edge_cases() -> None:
    dets, kept = soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,)
    with pytest.raises(ValueError, match="'linear'"):
        soft_nms(torch.zeros(1, 4), torch.ones(1), method="quadratic")


@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps(offset: int) -> None:
    first, second = random_boxes(6, seed=1)[0], random_boxes(6, seed=2, span=20)[0]
    expected = torch.tensor([[iou(a, b, offset) for b in second.tolist()] for a in first.tolist()])
    torch.testing.assert_close(bbox_overlaps(first, second, offset=offset), expected)
    torch.testing.assert_close(bbox_overlaps(first, second, aligned=True, offset=offset), expected.diagonal())
    inner = torch.cat([first[:, :2], (first[:, :2] + first[:, 2:]) / 2], 1)
    torch.testing.assert_close(bbox_overlaps(inner, first, mode="iof", aligned=True), torch.ones(6))
