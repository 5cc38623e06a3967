"""Segmenters: heads, losses, inference on whole images, weights."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import nn

from mmvit.architectures import Segmenter, create_model, is_model, list_models, load_weights
from mmvit.architectures.dense import label_map, slide, window_starts
from mmvit.backbones import list_backbones
from mmvit.data.structures import DataSample
from mmvit.errors import UserError
from mmvit.heads import VWCityHead, VWHead
from mmvit.heads.vw_head import FusedConv
from mmvit.layers.drop import DropPath
from mmvit.layers.varying_window import GRID, context_windows, merge_windows, query_windows
from mmvit.losses import NonFiniteError, pixel_accuracy, pixel_cross_entropy

BACKBONES = [
    name for name in list_backbones("*_debug") if name.split("_debug")[0] in ("mit", "swin", "convnext", "pvt", "pvt_v2")
]


def sample(labels=None, size=None, **meta):
    found = DataSample(metainfo=dict(img_id=7, img_path="a.jpg", ori_shape=size or tuple(labels.shape), **meta))
    if labels is not None:
        found.gt_sem_seg = PixelData(data=labels[None])
    return found


def raw(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def warm(model):
    """Trained-looking norms: every branch of the network matters."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, centre in (
                (module.weight, 1.0),
                (module.running_var, 1.0),
                (module.bias, 0.0),
                (module.running_mean, 0.0),
            ):
                tensor.data.copy_(centre + 0.2 * torch.rand(tensor.shape, generator=generator))
    return model


# ---------------------------------------------------------------------------------------------------------------- VWFormer


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("size", [(16, 24), (24, 40)])
def test_context_windows_by_definition(ratio, size):
    """Window (i, j) sees the r p x r s pixels around it; outside the map lie copies of columns and rows further inside."""
    height, width = size
    p, s = height // GRID, width // GRID
    x = torch.rand(2, 3, height, width)
    context = context_windows(x, ratio).view(2, GRID, GRID, p, s, ratio, ratio, 3)

    def source(position, step, side):
        if position < 0:
            return position + ratio * step  # copied from within the first r windows
        return position - ratio * step if position >= side else position

    for i, j, y, x_, a, b in torch.randint(0, 1 << 30, (200, 6)).tolist():
        i, j, y, x_, a, b = i % GRID, j % GRID, y % p, x_ % s, a % ratio, b % ratio
        row = i * p - (ratio * p - (ratio + 1) * p // 2) + y * ratio + a
        column = j * s - (ratio * s - (ratio + 1) * s // 2) + x_ * ratio + b
        expected = x[:, :, source(row, p, height), source(column, s, width)]
        torch.testing.assert_close(context[:, i, j, y, x_, a, b], expected, rtol=0, atol=0)


def test_windows_round_trip():
    x = torch.rand(2, 5, 16, 40)
    torch.testing.assert_close(merge_windows(query_windows(x), 16, 40), x, rtol=0, atol=0)
    assert torch.equal(query_windows(x)[GRID + 2, 0], x[0, :, 2, 10])  # window (1, 2), its first pixel


def test_fused_convolution_is_that_of_the_concatenation():
    layer = warm(FusedConv(12, 6, act="relu")).double().eval()
    maps = [torch.rand(2, c, h, w).double() for c, h, w in ((3, 5, 7), (4, 9, 13), (5, 1, 1))]
    resized = [F.interpolate(x, (9, 13), mode="bilinear", align_corners=False) for x in maps]
    expected = layer.norm(layer.conv(torch.cat(resized, 1))).relu()
    torch.testing.assert_close(layer(maps, (9, 13)), expected)
    layer.merge()
    torch.testing.assert_close(layer(maps, (9, 13)), expected)


@pytest.mark.parametrize("head", [VWHead, VWCityHead])
def test_vw_head_on_sides_that_are_no_multiples_of_64(head):
    """The fused map is padded with zeros for the windows, and cropped behind them."""
    model = warm(head([4, 8, 12, 16], 64, 5)).eval()
    maps = [torch.rand(1, c, -(-70 // s), -(-330 // s)) for c, s in ((4, 4), (8, 8), (12, 16), (16, 32))]
    logits = model(maps)
    assert logits.shape == (1, 5, 18, 83)
    fused = model.fuse(maps)  # 9 x 42 -> 16 x 48
    padded = F.pad(fused, (0, 6, 0, 7))
    for mine, theirs in zip(model.branches(fused), model.branches(padded)):
        torch.testing.assert_close(mine, theirs[..., :9, :42])


def test_vw_head_says_what_is_wrong():
    with pytest.raises(UserError, match="four maps"):
        VWHead([4, 8, 16], 64, 5)
    with pytest.raises(UserError, match="multiple of 64"):
        VWHead([4, 8, 16, 32], 100, 5)


# --------------------------------------------------------------------------------------------------------------- inference


def test_window_starts():
    assert window_starts(1024, 1024, 768) == [0]
    assert window_starts(2048, 1024, 768) == [0, 768, 1024]
    assert window_starts(300, 512, 341) == [0]
    assert window_starts(10, 4, 3) == [0, 3, 6]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_sliding_windows_are_averaged_once_per_pixel(batch):
    image = torch.rand(3, 23, 17)
    seen = []

    def network(windows):  # depends on the window, so that blending shows
        seen.append(len(windows))
        return torch.stack([w + 0.1 * w.mean() for w in windows])

    found = slide(image, network, (10, 8), (7, 5), batch)
    total, count = torch.zeros(3, 23, 17), torch.zeros(23, 17)
    for y in (0, 7, 13):
        for x in (0, 5, 9):
            window = image[:, y : y + 10, x : x + 8]
            total[:, y : y + 10, x : x + 8] += window + 0.1 * window.mean()
            count[y : y + 10, x : x + 8] += 1
    torch.testing.assert_close(found, total / count)
    assert sum(seen) == 9 and max(seen) == min(batch, 9)


@pytest.mark.parametrize("size", [(31, 50), (8, 13), (64, 13), (8, 99)])
def test_label_map_is_argmax_of_resized_logits(size, monkeypatch):
    monkeypatch.setattr("mmvit.architectures.rows._BAND", 5000)  # several bands
    views = [torch.randn(6, 8, 13), torch.randn(6, 15, 9)]
    resized = [F.interpolate(v[None], size, mode="bilinear", align_corners=False)[0] for v in views]
    assert torch.equal(label_map(views[:1], size), resized[0].argmax(0, keepdim=True).to(torch.uint8))
    expected = sum(r.softmax(0) for r in resized).argmax(0, keepdim=True)
    assert torch.equal(label_map(views, size), expected.to(torch.uint8))
    assert label_map([torch.randn(300, 4, 4)], size).dtype == torch.int16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return warm(create_model("vwformer_mit_debug", num_classes=5)).eval()


def test_predict_whole_list_and_views(model):
    images = [raw(64, 96), raw(64, 96, 1), raw(70, 45, 2)]
    sizes = [(128, 192), (50, 60), (70, 45)]

    def predict(chosen):
        data = dict(inputs=[images[i] for i in chosen], data_samples=[sample(size=sizes[i]) for i in chosen])
        return [s.pred_sem_seg.data for s in model.test_step(data)]

    alone = [predict([i])[0] for i in range(3)]
    assert [tuple(x.shape) for x in alone] == [(1, *size) for size in sizes] and alone[0].dtype == torch.uint8
    for chosen in ([0, 1], [0, 1, 2]):
        for mine, i in zip(predict(chosen), chosen):
            assert (mine == alone[i]).float().mean() > 0.999  # a batch may round differently
    views = [images[2], images[2].flip(-1), F.interpolate(images[2][None].float(), (64, 64))[0].byte()]
    data = dict(inputs=[views], data_samples=[sample(size=(70, 45), view_flips=[False, True, False])])
    found = model.test_step(data)[0].pred_sem_seg.data
    normalised = [model.data_preprocessor.normalise(v)[None] for v in views]
    with torch.no_grad():
        logits = [model.whole(v)[0] for v in normalised]
    logits[1] = logits[1].flip(-1)
    scores = [F.interpolate(x[None], (70, 45), mode="bilinear", align_corners=False)[0].softmax(0) for x in logits]
    assert torch.equal(found[0], sum(scores).argmax(0).to(torch.uint8))


def test_slide_mode(model):
    torch.manual_seed(0)
    sliding = Segmenter(
        "vwformer", 5, backbone="mit_debug", test_cfg=dict(mode="slide", crop_size=64, stride=(32, 48), window_batch=2)
    ).eval()
    sliding.load_state_dict(model.state_dict())
    image = model.data_preprocessor.normalise(raw(64, 64))[None]
    with torch.no_grad():
        torch.testing.assert_close(sliding.logits(image), model.whole(image))
        wide = model.data_preprocessor.normalise(raw(64, 112))[None]
        found = sliding.logits(wide)[0]
        left, right = model.whole(wide[..., :64])[0], model.whole(wide[..., 48:])[0]
    torch.testing.assert_close(found[..., :48], left[..., :48])
    torch.testing.assert_close(found[..., 48:64], (left[..., 48:] + right[..., :16]) / 2)
    torch.testing.assert_close(found[..., 64:], right[..., 16:])


@pytest.mark.parametrize(
    ("test_cfg", "message"),
    [
        (dict(mode="slid"), "whole' or 'slide"),
        (dict(mode="slide", crop_size=64), "needs crop_size"),
        (dict(mode="slide", crop_size=64, stride=65), "windows miss pixels"),
        (dict(crop=64), "nothing reads this key"),
    ],
)
def test_wrong_test_cfg(test_cfg, message):
    with pytest.raises(UserError, match=message):
        Segmenter("vwformer", 5, backbone="mit_debug", test_cfg=test_cfg)


# ------------------------------------------------------------------------------------------------------- losses, training


def test_cross_entropy_by_hand():
    logits = torch.tensor([[[[0.0, 1.0, 5.0]], [[0.0, -1.0, 0.0]]]])  # (1, 2, 1, 3)
    labels = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    first, second = torch.log(torch.tensor(2.0)), torch.log1p(torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), (first + second) / 3)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, average_ignored=False), (first + second) / 2)
    assert float(pixel_accuracy(logits, labels)) == 0.5
    nothing = torch.full_like(labels, 255)
    logits.requires_grad_(True)
    for average in (True, False):
        pixel_cross_entropy(logits, nothing, average).backward()
    assert float(pixel_cross_entropy(logits.detach(), nothing, False)) == 0 and not logits.grad.any()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["vwformer", "upernet", "segformer", "vwformer_city"])
def test_every_method_learns_with_every_backbone(method, backbone):
    """A step on a non-square crop: each parameter gets a gradient and the loss falls; odd sizes are predicted."""
    torch.manual_seed(0)
    model = warm(Segmenter(method, 4, backbone=backbone, data_preprocessor=dict(size=(64, 96)))).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.rate = 0.0
    labels = [torch.randint(0, 4, size, dtype=torch.uint8) for size in ((64, 96), (50, 70))]
    data = dict(inputs=[raw(64, 96), raw(50, 70, 1)], data_samples=[sample(x) for x in labels])
    batch = model.data_preprocessor(data, training=True)
    assert batch["inputs"].shape == (2, 3, 64, 96) and not batch["inputs"][1, :, 50:].any()
    assert (batch["data_samples"][1].gt_sem_seg.data[0, 50:] == 255).all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(4):
        losses = model(**batch, mode="loss")
        optimizer.zero_grad()
        total = sum(v for k, v in losses.items() if "loss" in k)
        total.backward()
        idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not idle
        optimizer.step()
        values.append(float(total.detach()))
    assert ("loss_aux" in losses) == (method == "upernet") and values[-1] < values[0]
    model.eval()
    found = model.test_step(dict(inputs=[raw(45, 71)], data_samples=[sample(size=(90, 33))]))[0]
    assert found.pred_sem_seg.data.shape == (1, 90, 33) and found.pred_sem_seg.data.max() < 4


def test_training_says_what_is_wrong():
    model = create_model("vwformer_mit_debug", num_classes=5).train()
    labels = torch.full((64, 64), 255, dtype=torch.uint8)

    def loss(image, *samples):
        data = dict(inputs=[image] * len(samples), data_samples=list(samples))
        return model(**model.data_preprocessor(data, training=True), mode="loss")

    with pytest.raises(UserError, match="two images per process"):
        loss(raw(64, 64), sample(labels))
    wrong = labels.clone()
    wrong[3, 4] = 5
    with pytest.raises(UserError, match=r"m\.png has the label 5, but there are 5 classes"):
        loss(raw(64, 64), sample(labels), sample(wrong, mask_path="m.png"))
    nan = model.decode_head.conv_seg.bias.data
    nan[0] = float("nan")
    with pytest.raises(NonFiniteError, match="logits of decode_head"):
        loss(raw(64, 64), sample(labels), sample(labels))
    with pytest.raises(UserError, match="more than the crop size"):
        Segmenter("segformer", 5, backbone="mit_debug", data_preprocessor=dict(size=32)).data_preprocessor(
            dict(inputs=[raw(64, 64)], data_samples=[sample(labels)]), training=True
        )


# ---------------------------------------------------------------------------------------------------------- names, weights


def test_names():
    assert {"vwformer_mit_b0", "upernet_mit_b0", "segformer_mit_b5", "vwformer_shapes"} <= set(list_models())
    for name in ("upernet_swin_t", "upernet_swin_tiny_ade20k", "vwformer_mit_b0_cityscapes", "rtdetr_r50"):
        assert is_model(name)
    assert not is_model("vwformer_nothing") and not is_model("deeplab_mit_b0")
    with pytest.raises(UserError, match="Did you mean 'vwformer_mit_b0'"):
        create_model("vwfomer_mit_b0")
    with pytest.raises(UserError, match="no backbone 'mit_b9'"):
        create_model("vwformer_mit_b9")
    city = create_model("vwformer_mit_debug_cityscapes")
    assert city.num_classes == 19 and isinstance(city.decode_head, VWCityHead)
    assert not create_model("vwformer_mit_debug", decode_head=dict(short_cut=False)).decode_head.short_cut


@pytest.mark.parametrize("method", ["upernet", "segformer", "vwformer"])
def test_deploy_keeps_the_logits(method):
    model = warm(create_model(f"{method}_mit_debug", num_classes=5)).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        before = model(image)
        torch.testing.assert_close(model.deploy()(image), before, rtol=1e-4, atol=1e-4)


def test_own_checkpoints_and_those_without_auxiliary_head_load(tmp_path):
    model = warm(create_model("upernet_mit_debug", num_classes=5)).eval()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(classes=list("abcde"))), tmp_path / "a.pth")
    for auxiliary in (None, False):
        other = create_model("upernet_mit_debug", num_classes=5, auxiliary_head=auxiliary).eval()
        load_weights(other, tmp_path / "a.pth")
        image = torch.rand(1, 3, 64, 64)
        assert torch.equal(other(image), model(image))
    with pytest.raises(UserError, match="5 classes, the model 7"):
        load_weights(create_model("upernet_mit_debug", num_classes=7), tmp_path / "a.pth")
