"""Configs: all of them build; keys that nothing reads, classes that disagree and data that is missing are explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_tools import CONFIGS, ROOT, tiny_config, tiny_data, train
from mmengine.config import Config
from mmengine.hooks import Hook

from mmvit.architectures import RTDETR
from mmvit.engine import Runner, apply_options, assemble, check_config, load_config
from mmvit.engine import test as evaluate
from mmvit.errors import UserError

NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
DETECTORS = [name for name in NAMES if name.startswith("rtdetr")]
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


def test_warm_up_is_linear_from_the_first_step(data, tmp_path):
    cfg = tiny_config(
        data,
        tmp_path,
        options=("param_scheduler=[{'type': 'LinearLR', 'start_factor': 0.25, 'by_epoch': False, 'end': 4}]",),
        auto_scale_lr=False,
    )
    rates = []
    runner = Runner.from_cfg(cfg)
    step = runner.model.train_step
    runner.model.train_step = lambda *args, **kwargs: (
        rates.append(runner.optim_wrapper.param_groups[0]["lr"]),
        step(*args, **kwargs),
    )[1]
    runner.train()
    assert rates == pytest.approx([0.00025, 0.0005, 0.00075, 0.001, 0.001, 0.001])


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
