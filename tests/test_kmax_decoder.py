"""kMaX-DeepLab's decoder: evaluation takes short cuts that must not show."""

import pytest
import torch

from mmvit.heads.kmax_decoder import KMaXDecoder, assigned_sums
from mmvit.layers.reparam import deploy


def decoder_and_maps(dtype=torch.float64):
    torch.manual_seed(0)
    decoder = KMaXDecoder((24, 16, 8), 12, num_classes=5, num_queries=7, num_layers=(1, 2, 1), dim=16).to(dtype).eval()
    with torch.no_grad():
        for name, value in decoder.state_dict().items():  # scales that start at 0 would hide branches
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if name.endswith("running_var") else torch.randn_like(value) * 0.3)
        decoder.layers[1].predictor.mask_norm.weight.fill_(-0.7)  # turns the order of the queries round
    maps = [torch.randn(2, c, s, s + 1, dtype=dtype) for c, s in zip((24, 16, 8), (3, 5, 9))]
    return decoder, torch.randn(2, 12, 17, 19, dtype=dtype), maps


@pytest.mark.parametrize("merged", [False, True])
def test_without_the_other_predictions_the_last_one_is_the_same(merged):
    decoder, features, maps = decoder_and_maps()
    with torch.no_grad():
        wanted = decoder(features, maps)[-1]
        if merged:
            decoder = deploy(decoder)
        [found] = decoder(features, maps, all_layers=False)
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.masks, wanted.masks)
    torch.testing.assert_close(found.features, wanted.features)
    assert found.masks.std((0, 2, 3)).min() > 0 and found.logits.std(1).min() > 1e-3


def test_training_normalises_over_the_pixels_in_either_case():
    decoder, features, maps = decoder_and_maps()
    decoder.train()
    for layer in decoder.layers:
        layer.drop_path.rate = 0.0
    wanted, [found] = decoder(features, maps)[-1], decoder(features, maps, all_layers=False)
    torch.testing.assert_close(found.masks, wanted.masks)


def test_gradients_of_the_sums_reach_the_values_only():
    values, masks = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 6, 3, 5, requires_grad=True)
    weight = torch.randn(2, 4, 6)
    (assigned_sums(values, masks) * weight).sum().backward()
    winner = masks.argmax(1)
    expected = torch.stack([w[:, i] for w, i in zip(weight, winner)])
    torch.testing.assert_close(values.grad, expected)
    assert masks.grad is None


@pytest.mark.parametrize("training", [False, True])
def test_mixed_precision_keeps_the_sums_wide(training):
    decoder, features, maps = decoder_and_maps(torch.float32)
    decoder.train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [found] = decoder(features, maps, all_layers=False)
        assert torch.isfinite(found.masks).all() and found.masks.dtype == torch.bfloat16
        assert len(decoder(features, maps)) == 5
