"""Segmentation recipes: data, sizes, backbones and their recipes, optimizer groups, evaluation and its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from engine_tools import CONFIGS, tiny_data, tiny_masks, tiny_semantic, train
from torch import nn

from mmvit.architectures import Segmenter
from mmvit.data import CITYSCAPES_CLASSES
from mmvit.engine import ParamRuleConstructor, Runner, assemble, check_config, load_config, replay
from mmvit.engine import test as evaluate
from mmvit.engine.scalars import class_table, score_text
from mmvit.errors import UserError

RECIPES = [f"{method}_{data}" for method in ("upernet", "segformer", "vwformer") for data in ("ade20k", "cityscapes")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_masks(tmp_path_factory.mktemp("data"))


def steps(cfg, loader: str) -> dict[str, dict]:
    return {step.type: step for step in cfg[loader].dataset.pipeline}


def recipe(name: str, data: Path, tmp_path: Path, **changes):
    return assemble(load_config(CONFIGS / f"{name}.py"), **(dict(data=data, work_dir=tmp_path, device="cpu") | changes))


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "backbone", "iters", "crop", "mode"),
    [
        ("upernet_ade20k", "swin_tiny", 160_000, (512, 512), "whole"),
        ("segformer_ade20k", "mit_b0", 160_000, (512, 512), "whole"),
        ("vwformer_ade20k", "swin_base", 160_000, (640, 640), "whole"),
        ("upernet_cityscapes", "swin_tiny", 80_000, (512, 1024), "whole"),
        ("segformer_cityscapes", "mit_b0", 160_000, (1024, 1024), "slide"),
        ("vwformer_cityscapes", "convnext_tiny", 160_000, (512, 1024), "whole"),
    ],
)
def test_published_recipes(data, tmp_path, name, backbone, iters, crop, mode):
    cfg = recipe(name, data, tmp_path)
    assert cfg.model.backbone.name == backbone and cfg.train_cfg.max_iters == iters
    train_steps, test_steps = steps(cfg, "train_dataloader"), steps(cfg, "test_dataloader")
    assert tuple(train_steps["RandomCrop"].size) == tuple(cfg.model.data_preprocessor.size) == crop
    short = 1024 if "cityscapes" in name else crop[0]
    long = 2048 if "cityscapes" in name else 4 * short
    assert tuple(test_steps["Resize"].size) == tuple(train_steps["RandomResize"].scale) == (long, short)
    assert ("ResizeToMultiple" in test_steps) == (name == "vwformer_ade20k")
    assert (cfg.model.get("test_cfg") or {}).get("mode", "whole") == mode
    assert cfg.auto_scale_lr.base_batch_size == (8 if name in ("upernet_cityscapes", "segformer_cityscapes") else 16)
    assert [s.end if "end" in s else s.begin for s in cfg.param_scheduler] == [1500, 1500]
    assert "backbone_recipes" not in cfg and cfg.model.num_classes == 12


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", ["mit", "swin", "convnext", "pvt", "pvt_v2"])
def test_any_backbone_in_any_recipe(data, tmp_path, name, family):
    cfg = recipe(name, data, tmp_path, backbone=f"{family}_debug")
    wrapper = cfg.optim_wrapper
    with torch.device("meta"):
        model = Segmenter(**{key: cfg.model[key] for key in ("arch", "backbone", "num_classes")})
    groups = ParamRuleConstructor(dict(optimizer=wrapper.optimizer), wrapper.paramwise_cfg).groups(model)
    assert model.backbone_name == f"{family}_debug"
    rates = [group["lr"] for group in groups]
    assert max(rates) == pytest.approx(wrapper.optimizer.lr * (10 if family == "mit" or "segformer" in name else 1))
    assert (min(rates) < 0.99 * wrapper.optimizer.lr) == (family == "convnext" or (family, name[:3]) == ("swin", "vwf"))


def settings(cfg) -> tuple:
    optimizer = cfg.optim_wrapper.optimizer
    return (
        cfg.model.backbone.drop_path_rate,
        optimizer.lr,
        optimizer.weight_decay,
        cfg.optim_wrapper.paramwise_cfg.get("layer_decay"),
        cfg.model.data_preprocessor.size[0],
        cfg.model.backbone_pretrained,
    )


@pytest.mark.parametrize(
    ("name", "backbone", "expected"),
    [
        ("upernet_ade20k", "swin_small", (0.3, 6e-5, 0.01, None, 512, True)),
        ("upernet_ade20k", "swin_large", (0.3, 6e-5, 0.01, None, 640, True)),
        ("upernet_ade20k", "convnext_tiny", (0.4, 1e-4, 0.05, 0.9, 512, True)),
        ("upernet_ade20k", "convnext_small", (0.3, 1e-4, 0.05, 0.9, 512, True)),
        ("upernet_ade20k", "convnext_base", (0.4, 1e-4, 0.05, 0.9, 640, "convnext_base_22k")),
        ("upernet_ade20k", "convnext_xlarge", (0.4, 8e-5, 0.05, 0.9, 640, True)),
        ("upernet_cityscapes", "convnext_large", (0.4, 1e-4, 0.05, 0.9, 512, True)),
        ("vwformer_ade20k", "swin_large", (0.3, 1e-4, 0.05, 0.85, 640, True)),
        ("vwformer_ade20k", "convnext_small", (0.4, 1e-4, 0.05, 0.9, 512, True)),
        ("vwformer_ade20k", "mit_b1", (0.1, 6e-5, 0.01, None, 512, True)),
        ("vwformer_cityscapes", "convnext_base", (0.4, 1e-4, 0.05, 0.9, 512, "convnext_base_22k")),
        ("segformer_ade20k", "mit_b5", (0.1, 6e-5, 0.01, None, 640, True)),
    ],
)
def test_what_the_recipe_says_of_a_backbone(data, tmp_path, name, backbone, expected):
    assert settings(recipe(name, data, tmp_path, backbone=backbone)) == expected


def test_wishes_win_over_the_recipe_of_a_backbone(data, tmp_path):
    wishes = dict(size=256, lr=2e-4, options=["model.backbone.drop_path_rate=0.0"])
    cfg = recipe("vwformer_ade20k", data, tmp_path, backbone="convnext_base", **wishes)
    assert settings(cfg)[:2] == (0.0, 2e-4) and cfg.model.data_preprocessor.size == (256, 256)
    again = assemble(cfg, data=data, work_dir=tmp_path, device="cpu")  # what was assembled stays as it is
    assert again.model == cfg.model and again.train_dataloader == cfg.train_dataloader


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cnovnext_*": {}}, r"backbone_recipes\['cnovnext_\*'\] fits no backbone. Did you mean 'convnext_\*'"),
        ({"swin_*": dict(modle={})}, r"backbone_recipes\['swin_\*'\]: Config key 'modle'.*Did you mean 'model'"),
        (
            {"swin_*": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_dacay=0.9)))},
            r"\['swin_\*'\]: .*layer_dacay: .*Did you mean 'layer_decay'",
        ),
        ({"swin_*": 640}, r"\['swin_\*'\] must be a dict"),
    ],
)
def test_recipes_of_backbones_are_checked(change, message):
    cfg = load_config(CONFIGS / "upernet_ade20k.py")
    cfg.backbone_recipes = {**cfg.backbone_recipes, **change}
    with pytest.raises(UserError, match=message):
        check_config(cfg)


# -- optimizer groups ------------------------------------------------------------------------------


def groups_of(arch: str, backbone: str, cfg) -> dict[str, tuple[float, float]]:
    """name -> (lr, weight decay)."""
    with torch.device("meta"):
        model = Segmenter(arch=arch, backbone=backbone, num_classes=12)
    wrapper = cfg.optim_wrapper
    groups = ParamRuleConstructor(dict(optimizer=wrapper.optimizer), wrapper.paramwise_cfg).groups(model)
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_layer_decay_of_convnext_by_hand(data, tmp_path):
    cfg = recipe("vwformer_ade20k", data, tmp_path, backbone="convnext_tiny")
    groups = groups_of("vwformer", "convnext_tiny", cfg)
    powers = {  # lr = 1e-4 * 0.9 ** (7 - id)
        "backbone.downsample_layers.0.0.weight": 7,
        "backbone.stages.0.2.dwconv.weight": 6,
        "backbone.downsample_layers.1.1.weight": 5,
        "backbone.stages.1.0.pwconv1.weight": 5,
        "backbone.downsample_layers.2.1.weight": 4,
        "backbone.stages.2.2.pwconv2.weight": 4,
        "backbone.stages.2.3.pwconv2.weight": 3,
        "backbone.stages.2.8.dwconv.weight": 2,
        "backbone.downsample_layers.3.1.weight": 1,
        "backbone.stages.3.2.pwconv1.weight": 1,
        "decode_head.conv_seg.weight": 0,
    }
    for name, power in powers.items():
        assert groups[name] == (pytest.approx(1e-4 * 0.9**power), 0.05), name
    for name in ("backbone.norm0.weight", "decode_head.conv_seg.bias"):
        assert groups[name] == (pytest.approx(1e-4), 0.0), name
    assert groups["backbone.stages.0.2.gamma"] == (pytest.approx(1e-4 * 0.9**6), 0.0)
    assert groups["backbone.stages.0.2.dwconv.bias"][1] == groups["backbone.stages.0.2.norm.weight"][1] == 0


def test_groups_of_swin_and_mit(data, tmp_path):
    groups = groups_of("vwformer", "swin_base", recipe("vwformer_ade20k", data, tmp_path))
    assert groups["backbone.patch_embed.proj.weight"] == (pytest.approx(1e-4 * 0.85**13), 0.05)
    assert groups["backbone.layers.3.blocks.1.attn.qkv.bias"] == (pytest.approx(1e-4 * 0.85), 0.05)
    assert groups["backbone.layers.3.blocks.1.attn.relative_position_bias_table"] == (pytest.approx(1e-4 * 0.85), 0.0)
    assert groups["backbone.norm3.weight"] == (1e-4, 0.0)
    groups = groups_of("vwformer", "mit_b0", recipe("segformer_ade20k", data, tmp_path))
    heads = {value for name, value in groups.items() if name.startswith("decode_head.")}
    assert heads == {(6e-5 * 10, 0.01)}
    assert {value for name, value in groups.items() if name.startswith("backbone.") and "norm" in name} == {(6e-5, 0.0)}
    assert {value for name, value in groups.items() if name.startswith("backbone.") and "norm" not in name} == {(6e-5, 0.01)}


def test_layer_decay_needs_depths():
    optimizer = dict(type="AdamW", lr=1.0)
    with pytest.raises(UserError, match="Sequential knows no layer depths"):
        ParamRuleConstructor(dict(optimizer=optimizer), dict(layer_decay=0.9)).groups(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(UserError, match="layer_decay=9: it must lie between 0 and 1"):
        ParamRuleConstructor(dict(optimizer=optimizer), dict(layer_decay=9))


# -- data ------------------------------------------------------------------------------------------


def test_data_gives_files_classes_and_colours(data, tmp_path):
    cfg = recipe("upernet_cityscapes", data, tmp_path)
    assert cfg.train_dataloader.dataset.img_dir.endswith("images/training") and cfg.model.num_classes == 12
    assert cfg.test_dataloader.dataset.mask_dir.endswith("annotations/validation")
    assert cfg.test_dataloader.dataset.mask_format == "reduce_zero" and cfg.test_dataloader.dataset.classes[0] == "circle"
    with pytest.raises(UserError, match="model.num_classes=3 in the config, but .* has 12 classes"):
        recipe("upernet_cityscapes", data, tmp_path, options=["model.num_classes=3"])


def test_data_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/ade20k: the data set is not there.*prepare_dataset.py ade20k"):
        assemble(load_config(CONFIGS / "upernet_ade20k.py"))
    with pytest.raises(UserError, match="data/cityscapes: the data set is not there"):
        assemble(load_config(CONFIGS / "upernet_ade20k.py"), data="cityscapes")


def test_prepared_cityscapes_is_found(monkeypatch, tmp_path):
    from mmvit.data import ensure_shapes

    root = ensure_shapes(tmp_path / "shapes", train=2, val=1, size=64, layouts=("cityscapes",))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cityscapes").symlink_to(root / "cityscapes")
    monkeypatch.chdir(tmp_path)
    cfg = assemble(load_config(CONFIGS / "segformer_cityscapes.py"), device="cpu")
    assert cfg.model.num_classes == 19 and cfg.train_dataloader.dataset.classes == CITYSCAPES_CLASSES
    assert cfg.train_dataloader.batch_size == 2 and cfg.data == "cityscapes"


def test_data_of_the_wrong_kind(data, tmp_path):
    boxes = tiny_data(tmp_path)
    for wrong in (boxes, boxes / "annotations/instances_val.json", "coco"):
        with pytest.raises(UserError, match="boxes .*needs a mask for each picture. Take a config like configs/rtdetr_r50.py"):
            recipe("upernet_ade20k", wrong, tmp_path)
    for wrong in (data, "cityscapes"):
        with pytest.raises(UserError, match="masks .*detects objects. Take a config like configs/upernet_ade20k.py"):
            assemble(load_config(CONFIGS / "rtdetr_r50.py"), data=wrong, device="cpu")
    for wish in (dict(mask_format="index"), dict(slide=True), dict(tta=True)):
        with pytest.raises(UserError, match="this config detects objects"):
            assemble(load_config(CONFIGS / "rtdetr_shapes.py"), data=boxes, device="cpu", **wish)


@pytest.fixture
def binary(tmp_path) -> Path:
    """A user's folder with 0/255 masks and two names."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("other\nleaf\n")
    for i in range(3):
        picture = np.full((48, 40, 3), 60 * i, np.uint8)
        mask = np.zeros((48, 40), np.uint8)
        mask[10:30, 5 : 20 + i] = 255
        cv2.imwrite(str(root / f"images/{i}.jpg"), picture)
        cv2.imwrite(str(root / f"masks/{i}.png"), mask)
    return root


def test_masks_of_ones_own_are_looked_at_before_training(binary, tmp_path, monkeypatch):
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="255.*--mask-format binary"):
        tiny_semantic(binary, tmp_path / "run", batch_size=None)
    cfg = tiny_semantic(binary, tmp_path / "run", batch_size=None, mask_format="binary", iters=1)
    assert cfg.train_dataloader.batch_size == 3  # of 8
    runner = train(cfg)
    assert runner.model.num_classes == 2 and runner.train_dataloader.dataset.metainfo["classes"] == ("other", "leaf")


# -- sizes, augmentation, evaluation ---------------------------------------------------------------


def test_size_changes_all_sizes_in_proportion(data, tmp_path):
    cfg = recipe("segformer_cityscapes", data, tmp_path, size=256)
    train_steps, test_steps = steps(cfg, "train_dataloader"), steps(cfg, "test_dataloader")
    assert train_steps["RandomCrop"].size == cfg.model.data_preprocessor.size == (256, 256)
    assert train_steps["RandomResize"].scale == test_steps["Resize"].size == (512, 256)
    assert (cfg.model.test_cfg.crop_size, cfg.model.test_cfg.stride) == ((256, 256), (192, 192))
    cfg = recipe("vwformer_cityscapes", data, tmp_path, size=64)
    assert cfg.model.data_preprocessor.size == (64, 128) and steps(cfg, "val_dataloader")["Resize"].size == (256, 128)


def test_no_augment_trains_on_what_is_evaluated(data, tmp_path):
    cfg = tiny_semantic(data, tmp_path, config="vwformer_ade20k", backbone="mit_debug", no_augment=True, iters=2)
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert kinds == ["LoadImage", "LoadSemanticMask", "Resize", "ResizeToMultiple", "PackSegInputs"]
    assert cfg.model.data_preprocessor.size is None
    runner = Runner.from_cfg(cfg)
    dataset = runner.build_dataloader(cfg.train_dataloader).dataset
    first, second = dataset[(0, 1)], dataset[(0, 2)]
    assert torch.equal(first["inputs"], second["inputs"]) and first["inputs"].shape[1] % 64 == 0
    runner.train()
    assert runner.iter == 2


def test_slide_and_tta_of_the_evaluation(data, tmp_path):
    cfg = recipe("upernet_cityscapes", data, tmp_path, slide=True, tta=True)
    assert cfg.model.test_cfg == dict(mode="slide", crop_size=(512, 1024), stride=(341, 682))
    kinds = [step.type for step in cfg.test_dataloader.dataset.pipeline]
    assert kinds == ["LoadImage", "TestTimeAug", "LoadSemanticMask", "PackSegInputs"]
    assert [step.type for step in cfg.val_dataloader.dataset.pipeline][1] == "Resize"
    views = recipe("vwformer_ade20k", data, tmp_path, tta=True).test_dataloader.dataset.pipeline[1]
    assert views == dict(
        type="TestTimeAug",
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip=True,
        size=(2560, 640),
        interpolation="cv2_bilinear",
        divisor=64,
    )


def test_ema_flag(data, tmp_path):
    plain = load_config(CONFIGS / "segformer_ade20k.py")
    changes = dict(data=data, size=64, work_dir=tmp_path, device="cpu")
    assert assemble(plain, ema=0.5, **changes).default_hooks.ema == dict(type="WarmupEMAHook", decay=0.5)
    assert "ema" not in assemble(plain, **changes).default_hooks
    assert tiny_semantic(data, tmp_path, ema=0.5).default_hooks.ema.decay == 0.5
    kept = assemble(load_config(CONFIGS / "rtdetr_shapes.py"), data=tiny_data(tmp_path), ema=True, device="cpu")
    assert kept.default_hooks.ema == dict(type="WarmupEMAHook", decay=0.999, warmups=500)
    with pytest.raises(UserError, match="--ema 1.5: the decay must lie between 0 and 1"):
        tiny_semantic(data, tmp_path, ema=1.5)


def test_evaluation_and_its_report(data, tmp_path, capsys):
    runner = train(tiny_semantic(data, tmp_path / "run", iters=3))
    cfg = load_config(CONFIGS / "vwformer_shapes.py")
    changes = dict(data=data, size=64, workers=0, device="cpu")
    best = tmp_path / "run" / "best.pth"
    report = evaluate(cfg, best, work_dir=tmp_path / "a", **changes)
    out = capsys.readouterr().out
    assert "IoU by class" in out and "circle" in out and "(measured on 4 images of " in out and "GFLOPs" in out
    assert {"metrics.json", "worst.png", "confusion.png"} <= {path.name for path in (tmp_path / "a").iterdir()}
    text = (tmp_path / "a" / "metrics.json").read_text()
    assert json.loads(text) == report and "NaN" not in text
    records = [json.loads(line) for line in (tmp_path / "run/scalars.json").read_text().splitlines()]
    trained = max((record for record in records if "mIoU" in record), key=lambda record: record["mIoU"])
    assert report["scores"] == {key: trained[key] for key in report["scores"]} and len(report["scores"]) == 15
    facts = dict(task="semantic", config="vwformer_shapes", arch="vwformer", backbone="mit_debug", images=4, data=str(data))
    facts |= dict(deploy=False, slide=False, tta=False, device="cpu", threads=1, input_size=[64, 64])
    assert {key: report[key] for key in facts} == facts
    assert report["parameters"] == sum(p.numel() for p in runner.model.parameters())
    assert report["flops"] > 2 * 64 * 64 and report["latency"] > 0 and report["versions"]["torch"] == torch.__version__
    assert len(report["sha256"]) == len(report["config_hash"]) == 64

    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    other = evaluate(cfg, best, work_dir=tmp_path / "b", **dict(changes, data=moved))
    assert other["config_hash"] == report["config_hash"] and other["scores"] == report["scores"]
    views = evaluate(cfg, best, work_dir=tmp_path / "c", slide=True, tta=True, **changes)
    assert views["tta"] and views["slide"] and views["config_hash"] != report["config_hash"]
    assert views["scores"] != report["scores"]


def test_worst_pictures_come_from_the_last_validation(data, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mmvit.evaluation.draw_gallery", lambda items, path, classes, palette: drawn.append((items, classes)))
    train(tiny_semantic(data, tmp_path, iters=4, val_interval=2, options=("default_hooks.worst.count=3",)))
    ((items, classes),) = drawn
    scores = [item["score"] for item in items]
    assert len(items) == 3 and scores == sorted(scores) and classes[0] == "circle"
    assert all(item["label"].shape == item["pred"].shape for item in items)


def test_bad_batch_of_masks_is_replayed(data, tmp_path):
    runner = Runner.from_cfg(tiny_semantic(data, tmp_path, iters=1))
    with torch.no_grad():
        runner.model.decode_head.conv_seg.bias.fill_(float("nan"))
    runner.train()
    path = tmp_path / "bad_batches" / "iter_0.pth"
    with torch.no_grad():
        runner.model.decode_head.conv_seg.bias.zero_()
    assert replay(runner.model, path)["loss_ce"] > 0


# -- scores ----------------------------------------------------------------------------------------


def test_scores_in_words():
    scores = {"mIoU": 0.8123, "mAcc": 0.9, "aAcc": 0.95, "IoU/sky": 0.7, "IoU/sea": float("nan")}
    assert score_text(scores) == "mIoU 0.812 (mAcc 0.900, aAcc 0.950)"
    assert score_text({"coco/bbox_mAP": 0.5, "coco/bbox_mAP_50": 0.7, "mIoU": 0.1}) == "box AP 0.500 (AP50 0.700), mIoU 0.100"
    assert score_text({"PQ": 0.41}) == "PQ 0.410"
    assert score_text({"other": 0.5}) == "other 0.5000"
    assert class_table(scores).splitlines()[1].split() == ["sky", "0.700", "sea", "-"]
    assert class_table({"mIoU": 0.1}) == ""
