"""Focal losses and the kernels that only move values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmvit.ops import carafe, psa_mask, sigmoid_focal_loss, softmax_focal_loss


def logits_and_target(rows: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0, 3, classes, 1, 2, classes])[:rows]  # `classes` is background
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 3, target


def sigmoid_loop(logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    loss = torch.zeros_like(logits)
    for n, row in enumerate(logits.tolist()):
        for c, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            hit = c == target[n]
            loss[n, c] = -alpha * (1 - p) ** gamma * math.log(p) if hit else -(1 - alpha) * p**gamma * math.log(1 - p)
            if weight is not None and target[n] < len(weight):
                loss[n, c] *= weight[target[n]]
    return loss


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(gamma: float, weighted: bool) -> None:
    logits, target = logits_and_target()
    weight = torch.tensor([1.0, 2, 3, 0.5]).double() if weighted else None
    expected = sigmoid_loop(logits, target, gamma, 0.3, weight)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, gamma, 0.3, weight, "none"), expected)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, gamma, 0.3, weight), expected.sum() / 6)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, gamma, 0.3, weight, "sum"), expected.sum())
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, target, gamma, 0.3, weight), logits.requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_softmax_focal_loss(gamma: float) -> None:
    logits, target = logits_and_target()
    target = torch.where(target == 4, -1, target)  # ignored
    weight = torch.tensor([1.0, 2, 3, 0.5]).double()
    p = logits.softmax(1)
    expected = torch.tensor(
        [
            0.0 if t < 0 else float(-0.3 * weight[t] * (1 - p[n, t]) ** gamma * p[n, t].log())
            for n, t in enumerate(target.tolist())
        ]
    ).double()
    torch.testing.assert_close(
        softmax_focal_loss(logits, target, gamma, 0.3, weight, "none"), expected, check_dtype=False, atol=1e-6, rtol=1e-6
    )
    assert torch.autograd.gradcheck(lambda x: softmax_focal_loss(x, target, gamma, 0.3, weight), logits.requires_grad_())


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, softmax_focal_loss])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_extreme_logits_stay_finite(loss, gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]], requires_grad=True)
    value = loss(logits, torch.tensor([0, 0, 1]), gamma)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_focal_loss_without_rows_and_with_wrong_shapes() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.int64)).backward()
    assert logits.grad.shape == (0, 3)
    with pytest.raises(ValueError, match=r"target \(N,\)"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="'mean'"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), reduction="average")


def carafe_loop(x: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = x.shape
    output = x.new_zeros(batch, channels, height * scale, width * scale)
    for c in range(channels):
        group = c // (channels // groups)
        for row in range(height * scale):
            for column in range(width * scale):
                for i in range(kernel):
                    for j in range(kernel):
                        y, z = row // scale + i - kernel // 2, column // scale + j - kernel // 2
                        if 0 <= y < height and 0 <= z < width:
                            weight = masks[:, (group * kernel + i) * kernel + j, row, column]
                            output[:, c, row, column] += x[:, c, y, z] * weight
    return output


def test_carafe() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 4, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, 18, 6, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(carafe(x, masks, 3, 2, 2), carafe_loop(x, masks, 3, 2, 2))
    inputs = (x.requires_grad_(), masks.requires_grad_())
    assert torch.autograd.gradcheck(lambda *t: carafe(*t, 3, 2, 2), inputs, fast_mode=True)


@pytest.mark.parametrize("distribute", [False, True])
def test_psa_mask(distribute: bool) -> None:
    x = torch.randn(2, 15, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(2, 12, 12, dtype=x.dtype)
    for row in range(4):
        for column in range(3):
            for i in range(3):
                for j in range(5):
                    y, z = row + i - 1, column + j - 2
                    if 0 <= y < 4 and 0 <= z < 3:
                        here, there = row * 3 + column, y * 3 + z
                        pair = (here, there) if distribute else (there, here)
                        expected[:, pair[0], pair[1]] = x[:, i * 5 + j, row, column]
    torch.testing.assert_close(psa_mask(x, distribute, (3, 5)), expected.view(2, 12, 4, 3))
    assert torch.autograd.gradcheck(lambda x: psa_mask(x, distribute, (3, 5)), x.requires_grad_(), fast_mode=True)
