"""Configs: all of them build; keys that nothing reads, classes that disagree and data that is missing are explained."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_tools import CONFIGS, ROOT, tiny_config, tiny_data, train
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook

from mmvit.architectures import RTDETR
from mmvit.data import Resize, ensure_shapes
from mmvit.engine import Runner, apply_options, assemble, check_config, load_config
from mmvit.engine import test as evaluate
from mmvit.engine.optim import ParamRuleConstructor
from mmvit.engine.recipes import apply_backbone_recipe
from mmvit.engine.schedule import fit_schedule
from mmvit.errors import UserError
from mmvit.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS

NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
DETECTORS = [name for name in NAMES if name.startswith("rtdetr")]
MASKS = [name for name in NAMES if name.startswith(("kmax", "mask2former", "pem"))]
SIZES = dict(
    rtdetr_r18=20_184_464,
    rtdetr_r34=31_441_668,
    rtdetr_r50m=36_593_772,
    rtdetr_r50=42_891_372,
    rtdetr_r101=76_556_268,
    rtdetrv2_r18=20_184_464,
    rtdetrv2_r50=42_891_372,
)  # measured on the official networks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def segments(tmp_path_factory) -> Path:
    """Shapes with objects, semantic masks and panoptic maps; pictures of 96 x 96."""
    folder = tmp_path_factory.mktemp("segments") / "shapes"
    return ensure_shapes(folder, train=4, val=2, size=96, layouts=("coco", "panoptic", "ade20k"))


@pytest.mark.parametrize("name", NAMES)
def test_config_is_documented(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert text.startswith('"""') and "Expected: " in text and "Cost: " in text and f"configs/{name}.py" in text
    check_config(load_config(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_is_complete_and_builds(name, data, tmp_path):
    cfg = assemble(load_config(CONFIGS / f"{name}.py"), data=data, work_dir=tmp_path, device="cpu")
    assert cfg.model.num_classes == 8
    with torch.device("meta"):
        model = RTDETR(
            **{
                k: v
                for k, v in load_config(CONFIGS / f"{name}.py").model.items()
                if k not in ("type", "backbone_pretrained", "data_preprocessor")
            }
        )
    if name in SIZES:
        assert sum(p.numel() for p in model.parameters()) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "epochs", "stop", "backbone_lr", "scales"),
    [
        ("rtdetr_r18", 72, None, 1e-5, 13),
        ("rtdetr_r50", 72, None, 1e-5, 13),
        ("rtdetr_r101", 72, None, 1e-6, 13),
        ("rtdetrv2_r18", 120, 117, None, 0),
        ("rtdetrv2_r34", 120, 117, 5e-5, 13),
        ("rtdetrv2_r50m", 84, 81, 1e-5, 13),
        ("rtdetrv2_r50", 72, 71, 1e-5, 13),
        ("rtdetrv2_r101", 72, 71, 1e-6, 13),
        ("rtdetrv2_r18_dsp", 36, 33, None, 0),
        ("rtdetrv2_r50_dsp", 12, 10, 1e-5, 13),
        ("rtdetrv2_hgnetv2_l", 72, 71, 5e-6, 13),
    ],
)
def test_published_recipes(name, epochs, stop, backbone_lr, scales):
    cfg = load_config(CONFIGS / f"{name}.py")
    v2 = "v2" in name
    assert cfg.train_cfg.max_epochs == epochs
    assert (cfg.default_hooks.stop_augmentation.epoch if v2 else None) == stop
    assert len(cfg.model.data_preprocessor.multi_scale or ()) == scales
    lrs = {rule.lr for rule in cfg.optim_wrapper.paramwise_cfg.rules if "lr" in rule}
    assert lrs == ({backbone_lr} if backbone_lr else set())
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4)
    assert cfg.optim_wrapper.clip_grad.max_norm == 0.1 and cfg.optim_wrapper.get("dtype") == ("fp16" if v2 else None)
    assert cfg.default_hooks.ema == dict(type="WarmupEMAHook", decay=0.9999, warmups=2000)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16) and cfg.train_dataloader.drop_last


# -- mask classifiers ------------------------------------------------------------------------------


def assembled(name: str, data: Path, **changes) -> Config:
    """A recipe of a mask classifier with a network of debug size in crops of 64 pixels, batch 2."""
    cfg = load_config(CONFIGS / f"{name}.py")
    backbone = changes.pop("backbone", "stdc_debug" if name.startswith("pem") else "resnet_debug")
    settings = dict(data=data, work_dir=data.parent / name, size=64, batch_size=2, workers=0, iters=2, seed=7, device="cpu")
    return assemble(cfg, **(settings | dict(backbone=backbone) | changes))


def flat(steps) -> list[str]:
    return [name for step in steps for name in (step.type, *flat(step.get("transforms", ())))]


@pytest.mark.parametrize("name", MASKS)
def test_mask_classifier_trains_a_step_and_is_evaluated(name, segments):
    torch.set_num_threads(1)
    cfg = assembled(name, segments)
    model = MODELS.build(dict(cfg.model, backbone_pretrained=False)).train()
    settings = {key: value for key, value in cfg.optim_wrapper.items() if key not in ("constructor", "paramwise_cfg")}
    wrapper = ParamRuleConstructor(settings, cfg.optim_wrapper.paramwise_cfg)(model)
    assert len({group["lr"] for group in wrapper.optimizer.param_groups}) == (1 if "shapes" in name else 2)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    losses = model.train_step(pseudo_collate([dataset[0], dataset[1]]), wrapper)
    assert wrapper.stepped and all(torch.isfinite(loss) for loss in losses.values())
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metrics = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    evaluator = Evaluator([METRICS.build(metric) for metric in metrics])
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        batch = pseudo_collate([dataset[i]])
        evaluator.process(model.eval().val_step(batch), batch)
    scores = evaluator.evaluate(len(dataset))
    kinds = dict(panoptic="PQ", instance="coco/segm_mAP", semantic="mIoU")
    wanted = {kinds[output] for output in model.outputs}
    if "cityscapes" in name:
        wanted -= {"coco/segm_mAP"}  # that of Cityscapes' own tool, which needs its files
    assert {key for key in kinds.values() if key in scores} == wanted
    assert model.num_classes == (8 if name.endswith("instance") else 12)


def test_mask_classifier_from_training_to_the_report(segments, tmp_path):
    wishes = dict(work_dir=tmp_path, backbone="stdc_debug")
    cfg = assembled("pem_cityscapes", segments, iters=1, **wishes)
    cfg.default_hooks.curves = None
    train(cfg)
    report = evaluate(
        load_config(CONFIGS / "pem_cityscapes.py"), tmp_path / "best.pth", data=segments, size=64, device="cpu", **wishes
    )
    assert (report["task"], report["arch"], report["input_size"]) == ("semantic", "pem", [64, 128])
    assert report["scores"]["mIoU"] >= 0 and report["flops"] > 1e6 and (tmp_path / "worst.png").exists()


@pytest.mark.parametrize("name", [name for name in MASKS if "shapes" not in name])
def test_mask_classifier_without_augmentation(name, segments):
    cfg = assembled(name, segments, no_augment=True)
    load = dict(instance=["LoadAnnotations"], panoptic=["LoadPanoptic"]).get(name.rpartition("_")[2], ["LoadSemanticMask"])
    extra = ["RequireSegments"] if name.startswith("kmax") else ["SanitizeBoxes"] if name.endswith("instance") else []
    kinds = flat(cfg.train_dataloader.dataset.pipeline)
    assert kinds[:-1] == ["LoadImage", *load, "Resize", *extra]
    assert bool(cfg.model.data_preprocessor.get("size")) == name.startswith("kmax")  # its sizes are part of the method
    train = cfg.train_dataloader.dataset
    sample = DATASETS.build(train)[0, 1]
    as_evaluated = DATASETS.build(dict(train, pipeline=cfg.val_dataloader.dataset.pipeline))[0, 2]
    assert torch.equal(sample["inputs"], as_evaluated["inputs"]) and len(sample["data_samples"].gt_segments.labels)


@pytest.mark.parametrize(
    ("name", "backbone", "lr", "iterations", "batch", "crop", "test", "changes"),
    [
        ("mask2former_coco_panoptic", None, 1e-4, 368_750, 16, (1024, 1024), (800, 1333), dict(freeze_norm=True)),
        (
            "mask2former_coco_panoptic",
            "swin_large_window12",
            1e-4,
            737_500,
            16,
            (1024, 1024),
            (800, 1333),
            dict(drop_path_rate=0.3, queries=200),
        ),
        ("mask2former_coco_instance", "swin_tiny", 1e-4, 368_750, 16, (1024, 1024), (800, 1333), dict(drop_path_rate=0.3)),
        ("mask2former_ade20k", "resnet_101", 1e-4, 160_000, 16, (512, 512), (512, 2048), {}),
        ("mask2former_ade20k", "swin_base_window12", 1e-4, 160_000, 16, (640, 640), (640, 2560), dict(drop_path_rate=0.3)),
        ("mask2former_ade20k_panoptic", None, 1e-4, 160_000, 16, (640, 640), (640, 2560), dict(freeze_norm=True)),
        ("mask2former_cityscapes", None, 1e-4, 90_000, 16, (512, 1024), (1024, 2048), {}),
        (
            "mask2former_cityscapes_panoptic",
            "swin_base_window12",
            1e-4,
            90_000,
            16,
            (512, 1024),
            (1024, 2048),
            dict(drop_path_rate=0.3, start="swin_base_window12_22k"),
        ),
        ("pem_coco_panoptic", "stdc_2", 1e-4, 368_750, 16, (1024, 1024), (800, 1333), {}),
        ("pem_ade20k", None, 4e-4, 160_000, 32, (512, 512), (512, 2048), dict(freeze_norm=True)),
        ("pem_ade20k_panoptic", "stdc_1", 4e-4, 160_000, 32, (640, 640), (640, 2560), {}),
        ("pem_cityscapes", "stdc_1", 7e-4, 90_000, 32, (512, 1024), (1024, 2048), {}),
        ("pem_cityscapes_panoptic", None, 7e-4, 90_000, 32, (512, 1024), (1024, 2048), {}),
        ("kmax_coco_panoptic", None, 5e-4, 150_000, 64, (1281, 1281), (1281, 1281), {}),
        (
            "kmax_ade20k_panoptic",
            "convnext_large",
            5e-4,
            100_000,
            64,
            (1281, 1281),
            (1281, 1281),
            dict(drop_path_rate=0.7, start="convnext_large_22k_1k_384"),
        ),
        ("kmax_cityscapes_panoptic", None, 3e-4, 60_000, 32, (1025, 2049), (1025, 2049), dict(queries=256)),
    ],
)
def test_published_mask_recipes(segments, name, backbone, lr, iterations, batch, crop, test, changes):
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg = assemble(cfg, data=segments, backbone=backbone, device="cpu", work_dir=segments.parent / "recipe")
    kmax = name.startswith("kmax")
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.get("clip_grad") == (None if kmax else dict(max_norm=0.01))
    assert (cfg.train_cfg.max_iters, cfg.auto_scale_lr.base_batch_size) == (iterations, batch)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert tuple(steps["RandomCrop"].size) == crop and tuple(steps.get("FixedSizePad", steps["RandomCrop"]).size) == crop
    assert next(step.size for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize") == test
    assert ("SegPhotometricDistort" in steps) == (kmax or "coco" not in name)
    stated = cfg.model.backbone
    found = dict(
        stated if isinstance(stated, dict) else {},
        start=cfg.model.backbone_pretrained,
        queries=cfg.model.get("head", {}).get("num_queries"),
    )
    assert {key: found.get(key) for key in ("freeze_norm", "drop_path_rate")} == {
        key: changes.get(key) for key in ("freeze_norm", "drop_path_rate")
    }
    assert (found["start"], found["queries"]) == (changes.get("start", True), changes.get("queries"))


def test_the_last_steps_of_the_learning_rate():
    large = load_config(CONFIGS / "mask2former_coco_panoptic.py")
    apply_backbone_recipe(large)
    assert large.param_scheduler[0].milestones == [327_778, 355_092]
    large = load_config(CONFIGS / "mask2former_coco_panoptic.py")
    large.model.backbone.name = "swin_large_window12"
    apply_backbone_recipe(large)
    assert large.param_scheduler[0].milestones == [655_556, 710_184]


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("mask2former_ade20k", lambda x: (1 - x) ** 0.9),
        ("pem_ade20k", lambda x: 0.0025 + 0.9975 * (1 + math.cos(math.pi * x)) / 2),
        ("pem_cityscapes", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("kmax_coco_panoptic", lambda x: (1 - x) ** 0.9 * min(1, 0.001 + 0.999 * x * 10)),
    ],
)
def test_schedules_of_mask_classifiers(name, shares):
    cfg = load_config(CONFIGS / f"{name}.py")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(dict(end=500), **settings, optimizer=optimizer))
        for settings in fit_schedule(cfg.param_scheduler, 500)
    ]
    for step in range(499):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(shares(step / 500), rel=0.03, abs=4e-3), step
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize("name", ["mask2former_coco_panoptic", "pem_ade20k", "kmax_coco_panoptic"])
def test_what_is_not_decayed(name, segments):
    cfg = assembled(name, segments)
    model = MODELS.build(dict(cfg.model, backbone_pretrained=False))
    groups = ParamRuleConstructor(cfg.optim_wrapper, cfg.optim_wrapper.paramwise_cfg).groups(model)
    found = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    parents = {
        f"{prefix}.{name}": (module, parameter)
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    expected = {key for key, (module, _) in parents.items() if isinstance(module, torch.nn.Embedding)}
    if name.startswith("kmax"):
        expected |= {key for key, (_, parameter) in parents.items() if parameter.ndim == 1}
    else:
        expected |= {key for key, (module, _) in parents.items() if "Norm" in type(module).__name__}
    assert found == expected and len(expected) > 40
    assert all(
        group["lr"] == pytest.approx(cfg.optim_wrapper.optimizer.lr * (0.1 if "backbone." in group["names"][0] else 1))
        for group in groups
    )


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (
            "mask2former_coco_panoptic",
            256,
            dict(RandomResize=(256, 256), FixedSizePad=(256, 256), Resize=(200, 333)),
        ),
        ("pem_cityscapes", 128, dict(RandomCrop=(128, 256), Resize=(256, 512))),
        ("mask2former_ade20k_panoptic", 64, dict(RandomCrop=(64, 64), FixedSizePad=(64, 64), Resize=(64, 256))),
        ("kmax_coco_panoptic", 64, dict(RandomResize=(65, 65), RandomCrop=(65, 65), Resize=(65, 65))),
        ("kmax_coco_panoptic", 129, dict(RandomResize=(129, 129), RandomCrop=(129, 129), Resize=(129, 129))),
        ("kmax_cityscapes_panoptic", 128, dict(RandomResize=(129, 257), RandomCrop=(129, 257), Resize=(129, 257))),
    ],
)
def test_size_keeps_the_proportions_of_mask_recipes(name, size, expected, segments):
    cfg = assembled(name, segments, size=size)
    train = cfg.train_dataloader.dataset.pipeline
    nested = [step for outer in train for step in outer.get("transforms", ())]
    for step in [*train, *nested, *cfg.test_dataloader.dataset.pipeline]:
        if step.type in expected:
            assert tuple(step.get("size") or step["scale"]) == expected[step.type]
        if step.type == "RandomChoiceResize":
            shorts = [min(scale) for scale in step.scales]
            whole = min(expected["Resize"])
            assert (shorts[0], shorts[-1]) == (whole // 2, whole * 2) and max(step.scales[0]) == 4 * whole
        if step.type == "RequireSegments":
            scale = min(expected["RandomCrop"]) / (1281 if "coco" in name else 1025)
            assert step.min_pixels == pytest.approx(4096 * scale**2, rel=0.1)
    if name.startswith("kmax"):
        assert cfg.model.data_preprocessor["size"] == expected["RandomCrop"]
        with pytest.raises(UserError, match="--size 130: the side must be a multiple of 32 or one more"):
            assembled(name, segments, size=130)


def test_a_backbone_without_a_map_behind_its_stem(segments):
    five = MODELS.build(assembled("kmax_cityscapes_panoptic", segments, backbone="convnext_debug").model)
    four = MODELS.build(assembled("kmax_cityscapes_panoptic", segments, backbone="swin_debug").model)
    assert (len(five.neck.stages), len(four.neck.stages)) == (5, 4)


@pytest.mark.parametrize("wish", ["slide", "tta"])
def test_windows_and_views_are_for_segmenters(wish, segments):
    with pytest.raises(UserError, match=f"--{wish} is not possible with MaskSegmenter"):
        assembled("mask2former_ade20k", segments, **{wish: True})
    with pytest.raises(UserError, match=f"--{wish} is for semantic segmentation; this config is for panoptic"):
        assembled("kmax_coco_panoptic", segments, **{wish: True})


def test_an_upright_picture_fits_a_model_of_one_size():
    sample = dict(img=np.zeros((300, 100, 3), np.uint8), scale_factor=(1.0, 1.0))
    assert Resize((65, 129), keep_ratio=True, oriented=True)(dict(sample))["img"].shape == (65, 22, 3)
    assert Resize((65, 129), keep_ratio=True)(dict(sample))["img"].shape == (129, 43, 3)


@pytest.mark.parametrize("end", [4, 1000])
def test_warm_up_is_linear_from_the_first_step(data, tmp_path, end):
    """It takes a tenth of a short run (42 iterations) at most: few pictures must see the full learning rate, too."""
    cfg = tiny_config(
        data,
        tmp_path,
        options=("param_scheduler=[{'type': 'LinearLR', 'start_factor': 0.25, 'by_epoch': False, 'end': " + f"{end}}}]",),
        auto_scale_lr=False,
        epochs=14,
    )
    rates = []
    runner = Runner.from_cfg(cfg)
    step = runner.model.train_step
    runner.model.train_step = lambda *args, **kwargs: (
        rates.append(runner.optim_wrapper.param_groups[0]["lr"]),
        step(*args, **kwargs),
    )[1]
    runner.train()
    assert rates == pytest.approx([0.00025, 0.0005, 0.00075] + [0.001] * 39)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(trian_cfg={}), "'trian_cfg': nothing reads it. Did you mean 'train_cfg'"),
        (dict(model=dict(num_clases=3)), "model.num_clases: RTDETR does not read it. Did you mean 'num_classes'"),
        (dict(model=dict(type="RTDTR")), "model.type: no model is called 'RTDTR'. Did you mean 'RTDETR'"),
        (dict(model=dict(data_preprocessor=dict(divisior=32))), "model.data_preprocessor.divisior: .*Did you mean 'divisor'"),
        (dict(train_dataloader=dict(batchsize=3)), "train_dataloader.batchsize: nothing reads it. Did you mean 'batch_size'"),
        (
            dict(train_dataloader=dict(dataset=dict(anno_file="x"))),
            "train_dataloader.dataset.anno_file: .*Did you mean 'ann_file'",
        ),
        (dict(train_dataloader=dict(sampler=dict(shufle=True))), "sampler.shufle: ResumableSampler .*Did you mean 'shuffle'"),
        (dict(train_cfg=dict(max_epoch=3)), "train_cfg.max_epoch: EpochTrainLoop .*Did you mean 'max_epochs'"),
        (
            dict(optim_wrapper=dict(optimizer=dict(wieght_decay=0))),
            "optimizer.wieght_decay: AdamW .*Did you mean 'weight_decay'",
        ),
        (
            dict(optim_wrapper=dict(clip_gard=dict(max_norm=1))),
            "optim_wrapper.clip_gard: AmpWrapper .*Did you mean 'clip_grad'",
        ),
        (
            dict(optim_wrapper=dict(constructor="ParamRulesConstructor")),
            "optim_wrapper.constructor.* Did you mean 'ParamRuleConstructor'",
        ),
        (dict(optim_wrapper=dict(paramwise_cfg=dict(rule=[]))), "paramwise_cfg.rule: .*Did you mean 'rules'"),
        (dict(default_hooks=dict(ema=dict(warmup=3))), "default_hooks.ema.warmup: WarmupEMAHook .*Did you mean 'warmups'"),
        (dict(default_hooks=dict(mine=dict(type="CurvHook"))), "default_hooks.mine.type: .*Did you mean 'CurveHook'"),
        (dict(val_evaluator=dict(annfile="x")), "val_evaluator.annfile: CocoBoxMetric .*Did you mean 'ann_file'"),
        (
            dict(param_scheduler=[dict(type="LinearLR", start_facter=1)]),
            r"param_scheduler\[0\].start_facter: .*Did you mean 'start_factor'",
        ),
        (dict(env_cfg=dict(cudnn_benchmrk=True)), "env_cfg.cudnn_benchmrk: .*Did you mean 'cudnn_benchmark'"),
        (dict(auto_scale_lr=dict(base_batchsize=1)), "auto_scale_lr.base_batchsize: .*Did you mean 'base_batch_size'"),
    ],
)
def test_key_that_nothing_reads(change, message):
    cfg = load_config(CONFIGS / "rtdetrv2_r50.py")
    cfg.merge_from_dict(change)
    with pytest.raises(UserError, match=message):
        check_config(cfg)


def test_key_of_a_pipeline_step_is_checked():
    cfg = load_config(CONFIGS / "rtdetr_r50.py")
    cfg.train_dataloader.dataset.pipeline[4].min_scal = 0.5
    with pytest.raises(UserError, match=r"pipeline\[4\].min_scal: IoUCrop .*Did you mean 'min_scale'"):
        check_config(cfg)


def test_key_of_a_part_of_the_model_is_checked_when_it_is_built(data, tmp_path):
    cfg = tiny_config(data, tmp_path, options=("model.neck={'hiden_dim': 32}",))
    with pytest.raises(UserError, match="'hiden_dim'.*HybridEncoder does not read it. Did you mean 'hidden_dim'"):
        Runner.from_cfg(cfg)


def test_mmengine_parts_pass():
    cfg = load_config(CONFIGS / "rtdetr_r50.py")
    cfg.custom_hooks = [dict(type="EMAHook", momentum=0.1, priority=49), dict(type="EarlyStoppingHook", monitor="loss")]
    cfg.param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, by_epoch=True, convert_to_iter_based=True)]
    cfg.optim_wrapper.type = "OptimWrapper"
    check_config(cfg)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.archh='debug'", "model.archh: RTDETR .*Did you mean 'arch'"),
        ("modle.arch=debug", "the config has no 'modle'. Did you mean 'model'"),
        ("train_cfg.max_epochs.x=3", "train_cfg.max_epochs is 72, which has no parts"),
        ("train_dataloader.datset.ann_file=x", "train_dataloader has no 'datset'. Did you mean 'dataset'"),
        ("train_dataloader.batchsize=2", "train_dataloader has no 'batchsize'. Did you mean 'batch_size'"),
        ("train_dataloader.dataset.pipeline.99.p=0", "entries 0 to 9, not '99'"),
        ("optim_wrapper.paramwise_cfg.rules.0.lrr=1", "rules.0 has no 'lrr'. Did you mean 'lr'"),
        ("batch_size", "not of the form"),
        ("work_dirr=x", "'work_dirr': nothing reads it. Did you mean 'work_dir'"),
    ],
)
def test_option_with_a_path_that_does_not_exist(option, message):
    with pytest.raises(UserError, match=message):
        apply_options(load_config(CONFIGS / "rtdetr_r50.py"), [option])


def test_options_are_applied():
    cfg = load_config(CONFIGS / "rtdetr_r50.py")
    apply_options(
        cfg,
        [
            "model.top=100",
            "train_dataloader.dataset.pipeline.4.p=0.25",
            "optim_wrapper.optimizer.betas=(0.8,0.9)",
            "train_dataloader.prefetch_factor=4",
            "model.head={'num_queries': 50}",
            "find_unused_parameters=true",
            "optim_wrapper.accumulative_counts=2",
            "work_dir=a/b=c",
        ],
    )
    assert cfg.model.top == 100 and cfg.train_dataloader.dataset.pipeline[4].p == 0.25
    assert cfg.optim_wrapper.optimizer.betas == (0.8, 0.9) and cfg.train_dataloader.prefetch_factor == 4
    assert cfg.model.head.num_queries == 50 and cfg.find_unused_parameters is True
    assert cfg.optim_wrapper.accumulative_counts == 2 and cfg.work_dir == "a/b=c"


def test_config_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no config .*Did you mean 'rtdetr_r50'"):
        load_config(CONFIGS / "rtdetr_50.py")
    (tmp_path / "bad.py").write_text("model = dict(")
    with pytest.raises(UserError, match="bad.py cannot be read"):
        load_config(tmp_path / "bad.py")


# -- assembly --------------------------------------------------------------------------------------


def test_missing_coco_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="annotations/instances_train2017.json.*train2017.zip.*--data shapes"):
        assemble(load_config(CONFIGS / "rtdetr_r50.py"))


def test_short_forms(data, tmp_path):
    cfg = assemble(
        load_config(CONFIGS / "rtdetrv2_r50.py"),
        data=data,
        work_dir=tmp_path,
        size=320,
        epochs=10,
        batch_size=2,
        lr=2e-4,
        workers=0,
        device="cpu",
        seed=5,
    )
    assert [step["size"] for step in cfg.train_dataloader.dataset.pipeline if step["type"] == "Resize"] == [(320, 320)]
    assert cfg.model.data_preprocessor.multi_scale == [256, 256, 288, 288, 320, 320, 320, 320, 352, 352, 384, 384, 416]
    assert cfg.train_cfg.max_epochs == 10 and cfg.default_hooks.stop_augmentation.epoch == 9
    assert cfg.optim_wrapper.optimizer.lr == 2e-4 and cfg.optim_wrapper.paramwise_cfg.rules[0].lr == pytest.approx(2e-5)
    assert cfg.train_dataloader.num_workers == 0 and not cfg.train_dataloader.persistent_workers
    assert cfg.optim_wrapper.dtype is None  # fp16 of the recipe needs a GPU
    assert cfg.randomness.seed == 5 and cfg.env_cfg.dist_cfg.backend == "gloo"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(backbone="presnet_50v"), "no backbone 'presnet_50v'. Did you mean 'presnet_50vd'"),
        (dict(size=100), "--size 100: .*multiple of 32"),
        (dict(batch_size=0), "--batch-size 0"),
        (dict(device="gpu"), "--device 'gpu' is not a device"),
        (dict(resume=True, load_from="x"), "--resume and --load-from exclude each other"),
        (dict(resume="nowhere.pth"), "no checkpoint nowhere.pth"),
        (dict(data="nowhere"), "nowhere: no such folder"),
        (dict(options=["model.num_classes=3"]), "model.num_classes=3 in the config, but .* has 8 classes"),
    ],
)
def test_wishes_that_cannot_be_met(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        assemble(load_config(CONFIGS / "rtdetr_r50.py"), **(dict(data=data, work_dir=tmp_path, device="cpu") | changes))


def test_another_backbone_wires_itself(data, tmp_path):
    cfg = tiny_config(data, tmp_path, backbone="presnet_shapes", epochs=1)
    runner = train(cfg)
    assert runner.model.backbone_name == "presnet_shapes" and runner.iter == 3


def test_weights_of_other_classes_need_to_be_asked_for(data, tmp_path):
    train(tiny_config(data, tmp_path / "eight", epochs=1))
    best = tmp_path / "eight" / "best.pth"
    two = ("train_dataloader.dataset.classes=('circle','moon')",)
    with pytest.raises(
        UserError, match="best.pth has 8 classes, the data set has 2; class 1 is 'triangle'.*'moon'.*--new-classes"
    ):
        train(tiny_config(data, tmp_path / "two", epochs=1, options=two, load_from=best))
    runner = Runner.from_cfg(tiny_config(data, tmp_path / "two", epochs=1, options=two, load_from=best, new_classes=True))
    loaded = {}

    class Look(Hook):
        def before_train(self, runner):
            loaded.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    runner.register_hook(Look())
    runner.train()
    ours = torch.load(best, weights_only=True)["state_dict"]
    assert torch.equal(loaded["backbone.conv1.conv1_1.conv.weight"], ours["backbone.conv1.conv1_1.conv.weight"])
    assert loaded["head.enc_score_head.weight"].shape[0] == 2


def test_same_weights_are_loaded_and_evaluated(data, tmp_path, capsys):
    train(tiny_config(data, tmp_path / "a", epochs=2))
    cfg = load_config(CONFIGS / "rtdetr_shapes.py")
    cfg.model.arch = "debug"
    changes = dict(data=data, work_dir=tmp_path / "b", size=64, workers=0, device="cpu")
    report = evaluate(cfg, tmp_path / "a" / "epoch_2.pth", **changes)
    trained = [json.loads(line) for line in (tmp_path / "a" / "scalars.json").read_text().splitlines()][-1]
    assert report["scores"]["coco/bbox_mAP"] == trained["coco/bbox_mAP"]
    assert json.loads((tmp_path / "b" / "metrics.json").read_text()) == report
    assert report["images"] == 4 and len(report["sha256"]) == 64
    deployed = evaluate(cfg, tmp_path / "a" / "epoch_2.pth", deploy=True, eval_layers=1, out=tmp_path / "m.json", **changes)
    assert deployed["parameters"] < report["parameters"] and (tmp_path / "m.json").exists()
    assert "(measured on 4 images" in capsys.readouterr().out
    with pytest.raises(UserError, match="does not fit the model"):
        evaluate(cfg, tmp_path / "a" / "epoch_2.pth", options=["model.neck={'hidden_dim': 32}"], **changes)


@pytest.mark.parametrize("ids", [[0, 1], [3, 90], [1, 2]])
def test_own_data_with_any_category_ids(tmp_path, data, ids):
    """0-based, 1-based and gapped category ids; one json for training and validation."""
    source = json.loads((data / "annotations/instances_train.json").read_text())
    circle = source["categories"][0]["id"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "images").symlink_to(data / "train")
    for annotation in source["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"] != circle]
    source["categories"] = [dict(id=ids[0], name="circle"), dict(id=ids[1], name="other")]
    (mine / "instances.json").write_text(json.dumps(source))
    runner = train(tiny_config(mine, tmp_path / "run", epochs=1))
    assert runner.model.num_classes == 2
    assert runner.train_dataloader.dataset.metainfo["classes"] == ("circle", "other")
    assert runner.val_dataloader.dataset.cat_ids == ids


def test_config_without_base_trains(tmp_path, data):
    """A config of one's own, with MMEngine's loop and hooks left out."""
    cfg = tiny_config(data, tmp_path, epochs=1)
    bare = Config(
        {
            key: cfg[key]
            for key in ("model", "train_dataloader", "optim_wrapper", "train_cfg", "default_scope", "work_dir", "device")
        }
    )
    check_config(bare)
    assert train(bare).iter == 3


@pytest.mark.parametrize("script", ["train", "test"])
def test_commands_explain_themselves(script, tmp_path):
    tool = [sys.executable, str(ROOT / f"tools/{script}.py")]
    shown = subprocess.run([*tool, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert shown.returncode == 0 and "--data {coco,ade20k,cityscapes,shapes,PATH}" in shown.stdout
    arguments = ["nothing.py"] + ["x.pth"] * (script == "test")
    wrong = subprocess.run([*tool, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert wrong.returncode == 2 and "There is no config nothing.py" in wrong.stderr and "Traceback" not in wrong.stderr


def test_arguments_import_nothing_heavy():
    code = (
        "import sys, mmvit.engine.commands; heavy = {'torch', 'mmengine', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_no_augment_leaves_the_pictures_as_they_are(data, tmp_path):
    cfg = assemble(load_config(CONFIGS / "rtdetrv2_r50.py"), data=data, work_dir=tmp_path, no_augment=True, val_interval=7)
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert kinds == ["LoadImage", "LoadAnnotations", "SanitizeBoxes", "Resize", "SanitizeBoxes", "PackDetInputs"]
    assert not cfg.model.data_preprocessor.multi_scale and "stop_augmentation" not in cfg.default_hooks
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 7


def test_a_batch_larger_than_the_data_becomes_the_data(data, tmp_path, capsys):
    cfg = load_config(CONFIGS / "rtdetr_r18.py")
    cfg.train_dataloader.batch_size, cfg.train_dataloader.num_workers = 20, 500
    cfg = assemble(cfg, data=data, work_dir=tmp_path)
    assert cfg.train_dataloader.batch_size == 14
    assert "batch size 20 of the recipe becomes 14" in capsys.readouterr().out
    assert cfg.train_dataloader.num_workers <= os.cpu_count()
