"""Detectors of mmdet's parts: gradients, sizes, masks, precision, and mmdet's own models and weights as reference."""

import copy
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from engine_tools import CONFIGS, train
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from pycocotools import mask as coco

from mmvit.architectures import create_model, is_model, list_models
from mmvit.architectures.box_masks import ObjectMasks, encode_part, paste_rle
from mmvit.architectures.detector_settings import ARCHS, detector_settings, merge, wired
from mmvit.data import ensure_shapes
from mmvit.data.structures import DataSample
from mmvit.engine import assemble, load_config
from mmvit.errors import UserError
from mmvit.inference import Detections, Predictor, draw_detections
from mmvit.losses import NonFiniteError
from mmvit.weights import load_into

SIZES = ((90, 120), (77, 64))  # of the images of a batch


def batch(boxes=(((5, 5, 60, 60), (30, 40, 100, 75)), ()), masks=True, ori_shape=None):
    """A batch as the data loader makes it: pictures of different sizes, the second without objects."""
    generator = torch.Generator().manual_seed(1)
    images, samples = [], []
    for i, ((height, width), objects) in enumerate(zip(SIZES, boxes)):
        corners = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
        instances = InstanceData(bboxes=corners, labels=torch.arange(len(corners)) % 3)
        if masks:
            instances.masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(instances.masks, corners.int().tolist()):
                mask[y1:y2, x1:x2] = True
        meta = dict(img_id=10 + i, img_path=f"{i}.jpg", img_shape=(height, width), ori_shape=ori_shape or (height, width))
        samples.append(DataSample(metainfo=meta, gt_instances=instances))
        images.append(torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8))
    return dict(inputs=images, data_samples=samples)


def debug(arch="mask_rcnn", backbone="resnet_debug", **settings):
    return create_model(f"{arch}_{backbone}", num_classes=3, **settings)


def losses_of(model, data):
    return model(**model.data_preprocessor(copy.deepcopy(data), training=True), mode="loss")


def predictions(model, data):
    with torch.no_grad():
        return [sample.pred_instances for sample in model.eval().test_step(copy.deepcopy(data))]


def pixels(instances):
    return np.stack([coco.decode(mask) for mask in instances.masks]).astype(bool)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("boxes", [((((5, 5, 60, 60), (30, 40, 100, 75)), ())), ((), ())])
def test_gradients_reach_every_parameter(arch, boxes):
    model = debug(arch).train()
    losses = losses_of(model, batch(boxes))
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(loss.isfinite() for loss in losses.values()) and all(loss.dim() == 0 for loss in losses.values())
    wrong = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []  # distributed training needs this in every step
    if boxes[0]:
        still = [n for n, p in model.named_parameters() if n.startswith(("neck", "roi", "rpn")) and not p.grad.abs().max() > 0]
        assert not [n for n in still if "fpn_convs" not in n]  # a level without boxes has nothing to learn


@pytest.mark.parametrize("backbone", ["mit_debug", "swin_debug", "convnext_debug", "pvt_debug", "pvt_v2_debug"])
def test_a_step_lowers_the_loss(backbone):
    model = debug(backbone=backbone).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    totals = []
    for _ in range(3):
        torch.manual_seed(1)  # the same boxes are sampled
        total, _ = model.parse_losses(losses_of(model, batch()))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < totals[0]


def test_bfloat16_keeps_boxes_exact():
    model = debug().train()
    torch.manual_seed(3)
    plain = model.parse_losses(losses_of(model, batch()))[0]
    with torch.autocast("cpu", torch.bfloat16):
        levels = model.extract(torch.randn(1, 3, 64, 64))
        torch.manual_seed(3)
        low = model.parse_losses(losses_of(model, batch()))[0]
    assert all(level.dtype == torch.float32 for level in levels)
    low.backward()
    assert low.isfinite() and abs(float(low.detach() - plain.detach())) < 0.3 * float(plain.detach())


def test_values_that_are_not_finite_are_named():
    model = debug().train()
    with torch.no_grad():
        model.roi_head.mask_head.conv_logits.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="loss_mask") as caught:
        losses_of(model, batch())
    assert caught.value.image_ids == [10, 11]


def test_objects_that_do_not_fit_the_model():
    with pytest.raises(UserError, match=r"image 10 \(0.jpg\).*no masks.*with_mask=True"):
        losses_of(debug(), batch(masks=False))
    data = batch()
    data["data_samples"][0].gt_instances.labels[1] = 3
    with pytest.raises(UserError, match="label 3, but there are 3 classes"):
        losses_of(debug(), data)
    boxes_only = debug(roi_head=dict(mask_head=None))
    assert not boxes_only.with_mask and "loss_mask" not in losses_of(boxes_only.train(), batch(masks=False))
    assert "masks" not in predictions(boxes_only, batch())[0]


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match="mask_rcnm.*mask_rcnn"):
        create_model("mask_rcnn_resnet_debug", arch="mask_rcnm")
    with pytest.raises(UserError, match="retinanet has no such part"):
        debug("retinanet", roi_head=dict(mask_head=None))
    with pytest.raises(UserError, match=r"model\.neck.*out_chanels"):
        debug(neck=dict(out_chanels=8))


def test_overrides_reach_all_stages_and_channels_follow():
    model = debug("cascade_mask_rcnn", neck=dict(out_channels=8), roi_head=dict(bbox_head=dict(fc_out_channels=12)))
    assert [head.fc_cls.in_features for head in model.roi_head.bbox_head] == [12] * 3
    assert model.rpn_head.rpn_conv.in_channels == model.roi_head.mask_head[0].convs[0].conv.in_channels == 8
    assert predictions(model, batch())[0].bboxes.isfinite().all()


# -- predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_predictions_are_in_the_original_image(arch):
    model = debug(arch)
    if arch == "retinanet":
        torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)
    found = predictions(model, batch(ori_shape=(301, 203)))
    for instances in found:
        assert len(instances) > 0 and (instances.scores.diff() <= 0).all()
        assert instances.bboxes.min() >= 0 and instances.bboxes[:, 2].max() <= 203 and instances.bboxes[:, 3].max() <= 301
        assert instances.bboxes[:, 3].max() > 150  # in the original's pixels
        assert int(instances.labels.max()) < 3
        if model.with_mask:
            assert len(instances.masks) == len(instances)
            assert all(mask["size"] == [301, 203] and isinstance(mask["counts"], bytes) for mask in instances.masks)


def test_tensor_mode_gives_what_the_heads_give():
    images = torch.randn(2, 3, 64, 96)
    scores, boxes, masks = debug().eval()(images)
    assert scores.shape == (len(boxes), 4) and boxes.shape[1] == 12 and masks.shape[1:] == (3, 28, 28)
    scores, boxes = debug("retinanet").eval()(images)
    assert [level.shape[-2:] for level in scores] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)] and boxes[0].shape[1] == 36


def test_deployed_models_find_the_same():
    model = debug("cascade_mask_rcnn")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    before = predictions(model, batch())[0]
    after = predictions(model.deploy(), batch())[0]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    best = before.scores.argsort(descending=True)[:5]
    distance = (before.bboxes[best, None] - after.bboxes).abs().amax(2)
    assert distance.min(1).values.max() < 1e-2 and torch.allclose(before.scores[0], after.scores[0], atol=1e-4)


# -- masks -----------------------------------------------------------------------------------------


def test_pasted_masks_equal_mmdets():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(40, 28, 28, generator=generator)
    corner = torch.rand(40, 2, generator=generator) * 90 - 10
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 80 + 0.1], 1)
    boxes[0], boxes[1], boxes[2] = torch.tensor([[0, 0, 120, 100], [30.2, 40, 30.4, 40.1], [50, 50, 50, 60]])
    keep = torch.arange(40) != 2  # a box without extent, of which the reference makes NaN
    found = np.stack([coco.decode(code) for code in paste_rle(maps, boxes, (100, 120))]).astype(bool)
    expected = _do_paste_mask(maps[keep, None], boxes[keep], 100, 120, skip_empty=False)[0] >= 0.5
    assert not found[2].any() and expected.any()
    assert (found[keep.numpy()] != expected.numpy()).sum() <= 2  # of 468 000, where a value is 0.5 to the last bit


def test_run_lengths_equal_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(60):
        height, width = generator.integers(1, 12, 2)
        top, left = generator.integers(0, height), generator.integers(0, width)
        part = generator.random((height - top, width - left)) < generator.choice([0.0, 0.3, 0.9, 1.0])
        part = part[: generator.integers(0, height - top + 1)]
        whole = np.zeros((height, width), np.uint8)
        whole[top : top + len(part), left:] = part
        assert encode_part(part, top, left, (int(height), int(width))) == coco.encode(np.asfortranarray(whole))


def test_mask_targets_equal_mmdets():
    from mmdet.structures.mask import BitmapMasks

    generator = np.random.default_rng(0)
    masks = generator.random((7, 50, 61)) < 0.5
    corner = generator.random((30, 2)) * 40
    boxes = np.concatenate([corner, corner + 1 + generator.random((30, 2)) * 20], 1).astype(np.float32)
    owner = generator.integers(0, 7, 30)
    for binarize in (True, False):
        args = (boxes, (28, 28))
        ours = ObjectMasks(torch.from_numpy(masks)).crop_and_resize(*args, inds=owner, binarize=binarize)
        theirs = BitmapMasks(masks.astype(np.uint8), 50, 61).crop_and_resize(*args, inds=owner, binarize=binarize)
        assert np.allclose(ours.to_ndarray(), theirs.to_ndarray(), atol=1e-5)


def test_mask_targets_of_many_large_objects_are_made_in_parts(monkeypatch):
    masks = torch.rand(7, 20, 20) < 0.5
    boxes, owner = np.tile(np.float32([2, 3, 12, 15]), (9, 1)), np.arange(9) % 7
    whole = ObjectMasks(masks).crop_and_resize(boxes, (28, 28), owner).to_ndarray()
    monkeypatch.setattr("mmvit.architectures.box_masks._VALUES", 900)  # two masks at a time
    assert (ObjectMasks(masks).crop_and_resize(boxes, (28, 28), owner).to_ndarray() == whole).all()


# -- mmdet as reference ----------------------------------------------------------------------------

DETECTORS = {"mask_rcnn": "MaskRCNN", "retinanet": "RetinaNet"}
BACKBONES = {
    "resnet": dict(type="ResNet", depth=50, base_channels=4),
    "swin": dict(type="SwinTransformer", embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4, mlp_ratio=2),
    "pvt_v2": dict(
        type="PyramidVisionTransformerV2", embed_dims=8, num_layers=(1, 2, 1, 1), num_heads=(1, 2, 5, 8), mlp_ratios=(2,) * 4
    ),
}
OURS = {
    "resnet": dict(name="resnet_50", width=4),
    "swin": "swin_debug",
    "pvt_v2": dict(name="pvt_v2_debug", dims=(8, 16, 40, 64)),
}
SMALL = dict(
    neck=dict(out_channels=16),
    rpn_head=dict(feat_channels=16),
    roi_head=dict(bbox_head=dict(fc_out_channels=32), mask_head=dict(conv_out_channels=16)),
)


def mmdet_model(arch, family, settings, out_indices):
    """The detector of mmdet itself."""
    import mmdet.models  # noqa: F401
    from mmdet.registry import MODELS

    settings = ConfigDict(settings)
    with DefaultScope.overwrite_default_scope("mmdet"):
        backbone = dict(BACKBONES[family], out_indices=out_indices)
        preprocessor = dict(
            type="DetDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], pad_size_divisor=32
        )
        kind = DETECTORS.get(arch, "CascadeRCNN")
        return MODELS.build(dict(type=kind, backbone=backbone, data_preprocessor=preprocessor, **settings))


def varied(model):
    """Weights for which boxes and classes differ."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if value.dim() > 1 and not name.startswith("backbone"):
            torch.nn.init.normal_(value, std=1.2 / value[0].numel() ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.05)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model


@pytest.mark.parametrize(
    ("arch", "family"),
    [
        ("mask_rcnn", "resnet"),
        ("mask_rcnn", "swin"),
        ("mask_rcnn", "pvt_v2"),
        ("cascade_mask_rcnn", "resnet"),
        ("cascade_mask_rcnn_2fc", "swin"),
        ("retinanet", "resnet"),
        ("retinanet", "swin"),
    ],
)
def test_mmdets_weights_give_mmdets_results(arch, family, monkeypatch):
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head
    from mmdet.structures import DetDataSample

    paste = fcn_mask_head._do_paste_mask  # knows float32 only
    monkeypatch.setattr(fcn_mask_head, "_do_paste_mask", lambda x, boxes, *a, **k: paste(x.float(), boxes.float(), *a, **k))

    small = {key: value for key, value in SMALL.items() if arch != "retinanet" or key == "neck"}
    small["test_cfg"] = dict(score_thr=0.0) if arch == "retinanet" else dict(rcnn=dict(score_thr=0.0))
    if arch == "cascade_mask_rcnn":
        small["roi_head"] = dict(small["roi_head"], bbox_head=dict(fc_out_channels=32, conv_out_channels=16))
    model = create_model(f"{arch}_resnet_debug", num_classes=3, **small, backbone=OURS[family])
    channels = [c for c, _ in model.backbone.feature_info]
    settings = wired(merge(detector_settings(arch, debug=family != "resnet"), small), channels, 3)
    reference = varied(mmdet_model(arch, family, settings, (1, 2, 3) if arch == "retinanet" else (0, 1, 2, 3)))
    load_into(model, model.convert(reference.state_dict()))
    model, reference = model.double().eval(), reference.double().eval()
    for norm in model.backbone.modules() if family == "pvt_v2" else ():
        norm.eps = 1e-6  # in mmdet's copy all are the same, in the paper's network some are 1e-5

    (height, width), ori_shape = SIZES[0], (180, 250)
    image = torch.zeros(1, 3, 96, 128, dtype=torch.float64)
    image[..., :height, :width] = torch.randn(3, height, width)
    meta = dict(img_shape=(height, width), ori_shape=ori_shape, scale_factor=(width / 250, height / 180))
    with torch.no_grad():
        expected = reference(image, [DetDataSample(metainfo=meta)], mode="predict")[0].pred_instances
        found = model(image, [DataSample(metainfo=meta)], mode="predict")[0].pred_instances
    assert len(found) == len(expected) > 5 and (found.labels == expected.labels).all()
    assert torch.allclose(found.bboxes, expected.bboxes, atol=1e-6)
    assert torch.allclose(found.scores, expected.scores)
    if model.with_mask:
        different = pixels(found) != expected.masks.numpy()
        assert expected.masks.any() and different.mean() < 1e-5


def test_settings_are_those_of_mmdets_configs():
    import mmdet

    folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "_base_" / "models"
    files = {
        "mask_rcnn": "mask-rcnn_r50_fpn",
        "cascade_mask_rcnn_2fc": "cascade-mask-rcnn_r50_fpn",
        "retinanet": "retinanet_r50_fpn",
    }
    for arch, name in files.items():
        published = Config.fromfile(folder / f"{name}.py").model.to_dict()
        if arch == "retinanet":  # its pyramid gets the three maps that it uses
            published["neck"].pop("start_level")
        strides = [256, 512, 1024, 2048][-3 if arch == "retinanet" else -4 :]
        published["neck"]["in_channels"] = strides
        ours = ConfigDict(wired(detector_settings(arch), strides, 80)).to_dict()
        for part in ours:
            assert ours[part] == published[part], (arch, part)


def test_official_swin_names_load():
    model = debug(backbone="swin_debug")
    state = dict(model.state_dict())
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)  # Swin-Transformer-Object-Detection
    load_into(model, model.convert(state))


def test_a_checkpoint_of_other_classes_is_refused():
    for arch in ARCHS:
        with pytest.raises(UserError, match="has 5 classes, the model 3"):
            model = debug(arch)
            other = create_model(f"{arch}_resnet_debug", num_classes=5)
            load_into(model, model.convert(other.state_dict()))


# -- names -----------------------------------------------------------------------------------------


def test_names():
    names = list_models("*mask_rcnn_swin_tiny")
    assert names == ["cascade_mask_rcnn_swin_tiny", "mask_rcnn_swin_tiny"] and "retinanet_pvt_tiny" in list_models()
    assert is_model("mask_rcnn_swin_t_coco") and not is_model("mask_rcnn_nothing")
    assert create_model("cascade_mask_rcnn_2fc_resnet_debug").num_classes == 80


# -- data, engine, inference -----------------------------------------------------------------------


def test_batches_are_padded_to_the_largest_image():
    model = debug()
    data = model.data_preprocessor(batch())
    assert data["inputs"].shape == (2, 3, 96, 128) and data["inputs"].is_contiguous(memory_format=torch.channels_last)
    assert not data["inputs"][1, :, 77:].any() and not data["inputs"][1, :, :, 64:].any()
    pixel = (batch()["inputs"][0][:, 5, 7] - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(data["inputs"][0, :, 5, 7], pixel)
    assert [sample.batch_input_shape for sample in data["data_samples"]] == [(96, 128)] * 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the shapes recipe on a few small pictures: its folder."""
    folder = tmp_path_factory.mktemp("detector")
    data = ensure_shapes(folder / "shapes", train=8, val=3, size=64)
    settings = dict(data=data, work_dir=folder / "run", size=64, batch_size=4, workers=0, epochs=2, seed=1, device="cpu")
    options = ("model.backbone=resnet_debug", "default_hooks.curves.interval=1")
    train(assemble(load_config(CONFIGS / "mask_rcnn_shapes.py"), options=options, **settings))
    return folder


def test_the_shapes_recipe_trains_and_measures_masks(trained):
    records = [json.loads(line) for line in (trained / "run" / "scalars.json").read_text().splitlines()]
    scores = next(record for record in reversed(records) if "coco/segm_mAP" in record)
    assert all(0 <= scores[f"coco/{kind}_mAP_50"] <= 1 for kind in ("bbox", "segm"))
    losses = [record for record in records if "loss" in record]
    assert len(losses) == 4 and all(0 < record["loss"] < 100 for record in losses)


def test_the_predictor_gives_masks(trained):
    picture = next((trained / "shapes" / "val").glob("*.jpg"))
    predictor = Predictor(checkpoint=trained / "run" / "best.pth", batch_size=2)
    predictor.model.roi_head.test_cfg.score_thr = 0.0
    image = np.random.default_rng(0).integers(0, 256, (50, 97, 3), dtype=np.uint8)
    small, large = predictor([image, str(picture)])
    assert predictor.task == "detection" and small.image_size == (50, 97) and len(small) > 0
    assert large.mask(0).shape == large.image_size == cv2.imread(str(picture)).shape[:2]
    assert small.mask(0).shape == (50, 97) and (np.diff(small.scores) <= 0).all()
    best = small.filter(float(small.scores[1]))
    assert len(best.masks) == len(best) >= 2 and best.masks[1] == small.masks[1]
    entry = json.loads(json.dumps(small.to_coco(7)))[0]
    assert (coco.decode(entry["segmentation"]).astype(bool) == small.mask(0)).all() and entry["image_id"] == 7


def test_masks_are_drawn_in_shades_with_labels_inside():
    masks = np.zeros((3, 200, 300), bool)
    masks[0, 20:120, 20:140] = masks[1, 20:120, 160:290] = masks[2, 180:190, 5:15] = True
    boxes = np.float32([[20, 20, 140, 120], [160, 20, 290, 120], [5, 180, 15, 190]])
    codes = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    found = Detections(boxes, np.float32([0.9, 0.8, 0.7]), np.int64([1, 1, 0]), ("cat", "dog"), (200, 300), masks=codes)
    image = np.full((200, 300, 3), 90, np.uint8)
    drawn = draw_detections(image, found, opacity=1.0)
    inside = [drawn[mask] for mask in masks]
    colours = [Counter(map(tuple, part.tolist())).most_common(1)[0][0] for part in inside]
    assert len(set(colours)) == 3 and (image == 90).all()
    assert (drawn[:15] == 90).all() and (drawn[130:160, 30:] == 90).all()  # labels are in the masks
    assert (draw_detections(image, found, opacity=0.0)[40:50, 25:40] == 90).all()
    with pytest.raises(UserError, match="opacity"):
        draw_detections(image, found, opacity=2)
    empty = Detections(boxes[:0], np.zeros(0, np.float32), np.zeros(0, np.int64), ("cat",), (200, 300), masks=[])
    assert (draw_detections(image, empty) == image).all()


def test_steps_of_the_learning_rate_follow_the_epochs(trained):
    data = trained / "shapes"
    cfg = assemble(load_config(CONFIGS / "mask_rcnn_coco_3x.py"), data=data, epochs=12, device="cpu")
    assert cfg.param_scheduler[1].milestones == [9, 11] and cfg.param_scheduler[0].end == 1000


def test_recipes_of_backbones(trained):
    def settings(config, backbone):
        cfg = assemble(load_config(CONFIGS / f"{config}.py"), data=trained / "shapes", backbone=backbone, device="cpu")
        return cfg.optim_wrapper.optimizer, cfg.optim_wrapper.paramwise_cfg, cfg.model.backbone

    optimizer, _, backbone = settings("mask_rcnn_coco", "resnet_50")
    assert (optimizer.type, optimizer.lr, backbone.frozen_stages) == ("SGD", 0.02, 1)
    optimizer, _, _ = settings("mask_rcnn_coco", "pvt_small")
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 2e-4, 1e-4)
    optimizer, paramwise, backbone = settings("cascade_mask_rcnn_coco_3x", "convnext_base")
    assert (optimizer.lr, paramwise.layer_decay, backbone.drop_path_rate) == (2e-4, 0.8, 0.7)
    optimizer, paramwise, _ = settings("mask_rcnn_coco_3x", "convnext_tiny")
    assert (optimizer.lr, paramwise.layer_decay) == (1e-4, 0.95)
    assert settings("retinanet_coco", None)[0].lr == 1e-4


@pytest.mark.slow
def test_the_shapes_recipe_reaches_its_score(tmp_path):
    data = ensure_shapes(tmp_path / "shapes")
    cfg = assemble(load_config(CONFIGS / "mask_rcnn_shapes.py"), data=data, work_dir=tmp_path / "run", seed=0, device="cpu")
    train(cfg)
    records = [json.loads(line) for line in (tmp_path / "run" / "scalars.json").read_text().splitlines()]
    assert [record["coco/segm_mAP"] for record in records if "coco/segm_mAP" in record][-1] >= 0.4
