"""Optimizer rules, averages, precision, skipped steps, augmentation that ends, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from engine_tools import CONFIGS, same, tiny_config, tiny_data, train
from mmengine.hooks import Hook
from torch import nn

from mmvit.architectures import RTDETR
from mmvit.engine import AmpWrapper, ParamRuleConstructor, Runner, WarmupEMA, load_config, read_checkpoint, replay, seed_step
from mmvit.errors import UserError
from mmvit.losses import NonFiniteError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


# -- average ---------------------------------------------------------------------------------------


def test_ema_follows_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    ema = WarmupEMA(model, decay=0.9, warmups=3)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model(torch.randn(8, 3).double())  # moves the running statistics
        ema.update_parameters(model)
        decay = 0.9 * (1 - math.exp(-step / 3))
        for key, value in model.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)
    assert int(ema.steps) == 5 and int(ema.module[1].num_batches_tracked) == 5


def test_validation_and_checkpoint_use_the_average(tmp_path, data):
    seen = {}

    class Look(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            seen["val"] = {key: value.clone() for key, value in runner.model.state_dict().items()}

        def after_train_epoch(self, runner):
            seen["train"] = {key: value.clone() for key, value in runner.model.state_dict().items()}

    runner = Runner.from_cfg(tiny_config(data, tmp_path, epochs=1))
    runner.register_hook(Look())
    runner.train()
    saved = read_checkpoint(tmp_path / "epoch_1.pth")
    assert not same(seen["val"], saved["state_dict"])
    assert not same(
        seen["train"], {key.removeprefix("module."): v for key, v in saved["ema_state_dict"].items() if key != "steps"}
    )
    assert same(seen["train"], seen["val"])


# -- optimizer groups ------------------------------------------------------------------------------


def groups_of(config: str) -> dict[str, tuple[float, float]]:
    """name -> (lr, weight decay) for the network of a config, on the meta device."""
    cfg = load_config(CONFIGS / f"{config}.py")
    with torch.device("meta"):
        model = RTDETR(arch=cfg.model.arch)
    wrapper = cfg.optim_wrapper
    groups = ParamRuleConstructor(dict(optimizer=wrapper.optimizer), wrapper.paramwise_cfg).groups(model)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)  # each exactly once
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_rules_of_r18():
    groups = groups_of("rtdetr_r18")
    assert groups["backbone.conv1.conv1_1.conv.weight"] == (1e-5, 1e-4)
    assert groups["backbone.conv1.conv1_1.norm.weight"] == groups["backbone.conv1.conv1_1.norm.bias"] == (1e-5, 0)
    assert groups["neck.input_proj.0.norm.weight"] == (1e-4, 1e-4)  # called input_proj.0.1.weight in the official code
    assert groups["neck.input_proj.0.norm.bias"] == (1e-4, 0)
    assert groups["head.input_proj.0.norm.weight"] == (1e-4, 0)
    assert groups["head.enc_output.norm.weight"] == groups["head.enc_output.proj.weight"] == (1e-4, 1e-4)
    assert groups["head.denoising_class_embed.weight"] == (1e-4, 1e-4)
    assert len(set(groups.values())) == 4


def test_rules_of_r50_and_r101():
    groups = groups_of("rtdetr_r50")
    assert "backbone.conv1.conv1_1.conv.weight" not in groups  # frozen stem
    assert {groups[name] for name in groups if name.startswith("backbone.")} == {(1e-5, 1e-4)}
    assert groups["neck.input_proj.2.norm.weight"] == groups["head.enc_output.norm.weight"] == (1e-4, 1e-4)
    assert groups["neck.lateral_convs.0.norm.weight"] == groups["head.dec_score_head.0.bias"] == (1e-4, 0)
    assert set(groups_of("rtdetr_r101").values()) == {(1e-6, 1e-4), (1e-4, 1e-4)}


def test_rules_of_v2():
    groups = groups_of("rtdetrv2_r18")
    assert {value for name, value in groups.items() if "norm" in name} == {(1e-4, 0)}
    assert {value for name, value in groups.items() if "norm" not in name} == {(1e-4, 1e-4)}
    groups = groups_of("rtdetrv2_r34")
    assert groups["backbone.conv1.conv1_1.norm.bias"] == (5e-5, 0) and groups["head.dec_score_head.0.bias"] == (1e-4, 0)
    groups = groups_of("rtdetrv2_hgnetv2_x")
    assert groups["head.dec_score_head.0.bias"] == (1e-4, 1e-4) and groups["neck.input_proj.0.norm.weight"] == (1e-4, 0)
    assert {value for name, value in groups.items() if name.startswith("backbone")} == {(1e-6, 1e-4)}


@pytest.mark.parametrize("config", ["rtdetr_r18", "rtdetr_r34", "rtdetr_r50", "rtdetr_r50m"])
def test_published_patterns_on_official_names_give_the_same_groups(config):
    small = [
        ("^(?=.*backbone)(?=.*norm).*$", 1e-5, 0.0),
        ("^(?=.*backbone)(?!.*norm).*$", 1e-5, None),
        ("^(?=.*(?:encoder|decoder))(?=.*(?:norm|bias)).*$", None, 0.0),
    ]
    base = [
        ("backbone", 1e-5, None),
        ("^(?=.*encoder(?=.*bias|.*norm.*weight)).*$", None, 0.0),
        ("^(?=.*decoder(?=.*bias|.*norm.*weight)).*$", None, 0.0),
    ]
    rules = small if config in ("rtdetr_r18", "rtdetr_r34") else base
    for name, ours in groups_of(config).items():
        official = re.sub(r"^neck\.(input_proj\.\d)\.conv", r"encoder.\1.0", name)
        official = re.sub(r"^neck\.(input_proj\.\d)\.norm", r"encoder.\1.1", official)
        official = re.sub(r"^head\.enc_output\.(proj|norm)", lambda m: f"decoder.enc_output.{int(m[1] == 'norm')}", official)
        official = re.sub(r"^neck\.", "encoder.", re.sub(r"^head\.", "decoder.", official))
        lr, decay = next(((lr, decay) for pattern, lr, decay in rules if re.findall(pattern, official)), (None, None))
        assert ours == (lr or 1e-4, 1e-4 if decay is None else decay), name


def test_rule_errors():
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = dict(type="AdamW", lr=1.0, weight_decay=0.5)
    with pytest.raises(UserError, match="'backbone' fits no parameter"):
        ParamRuleConstructor(dict(optimizer=optimizer), dict(rules=[dict(pattern="backbone")])).groups(model)
    ParamRuleConstructor(dict(optimizer=optimizer), dict(rules=[dict(pattern="backbone", optional=True)])).groups(model)
    with pytest.raises(UserError, match="decay_mul: nothing reads this key. Did you mean 'decay_mult'"):
        ParamRuleConstructor(dict(optimizer=optimizer), dict(rules=[dict(pattern="bias", decay_mul=0)]))
    groups = ParamRuleConstructor(
        dict(optimizer=optimizer), dict(rules=[dict(pattern="bias", lr_mult=0.1, decay_mult=0)])
    ).groups(model)
    assert [(g["lr"], g["weight_decay"], g["names"]) for g in groups] == [(1.0, 0.5, ["0.weight"]), (0.1, 0.0, ["0.bias"])]
    with pytest.raises(UserError, match="no trainable parameter"):
        ParamRuleConstructor(dict(optimizer=optimizer))(model.requires_grad_(False))


# -- steps -----------------------------------------------------------------------------------------


def test_auto_scaled_learning_rate_is_told(tmp_path, data, capsys):
    runner = Runner.from_cfg(tiny_config(data, tmp_path, epochs=1, options=("optim_wrapper.accumulative_counts=4",)))
    runner.train()
    assert "learning rate 0.001 × 16/8 = 0.002" in capsys.readouterr().out
    assert all(group["initial_lr"] == 0.002 for group in runner.optim_wrapper.param_groups)
    runner = Runner.from_cfg(tiny_config(data, tmp_path, epochs=1, auto_scale_lr=False))
    runner.train()
    assert all(group["initial_lr"] == 0.001 for group in runner.optim_wrapper.optimizer.param_groups)


def test_bf16_step_on_cpu(tmp_path, data):
    kinds = set()
    runner = Runner.from_cfg(tiny_config(data, tmp_path, epochs=1, amp="bf16"))
    runner.model.neck.input_proj[0].conv.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    assert torch.bfloat16 in kinds
    moved = [name for name, p in runner.model.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 0.9 * len(before)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in runner.model.parameters())
    with pytest.raises(UserError, match="--amp bf16"):
        train(tiny_config(data, tmp_path, epochs=1, amp="fp16"))


def test_wrapper_clips_and_accumulates():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    wrapper = AmpWrapper(torch.optim.SGD([weight], lr=1.0), accumulative_counts=2, clip_grad=dict(max_norm=0.5))
    wrapper.update_params((weight * torch.tensor([3.0, 4.0])).sum())
    assert not wrapper.stepped and weight.tolist() == [1, 2]
    wrapper.update_params((weight * torch.tensor([3.0, 4.0])).sum())
    assert wrapper.stepped and wrapper.grad_norm == 5
    torch.testing.assert_close(weight.detach(), torch.tensor([1 - 0.3, 2 - 0.4]))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_wrapper_skips_what_is_not_finite(bad):
    weight = nn.Parameter(torch.tensor([1.0]))
    wrapper = AmpWrapper(torch.optim.AdamW([weight], lr=1.0), clip_grad=dict(max_norm=0.5))
    wrapper.parameter_names = {id(weight): "layer.weight"}
    loss = (weight * math.nan).sum() if bad == "loss" else torch.sqrt(weight - 1).sum()  # the root's slope at 0 is infinite
    wrapper.update_params(loss)
    assert not wrapper.stepped and weight.tolist() == [1] and weight.grad is None and not wrapper.optimizer.state
    assert wrapper.failure.tensor_name == ("loss" if bad == "loss" else "the gradient of layer.weight")
    wrapper.update_params(weight.sum())
    assert wrapper.stepped and wrapper.failure is None


def test_one_bad_batch_drops_its_accumulation_window():
    weight = nn.Parameter(torch.tensor([1.0]))
    wrapper = AmpWrapper(torch.optim.SGD([weight], lr=1.0), accumulative_counts=2)
    wrapper.update_params((weight * math.inf).sum())
    wrapper.update_params(weight.sum())
    assert weight.tolist() == [1] and weight.grad is None
    wrapper.update_params(weight.sum())
    wrapper.update_params(weight.sum())
    assert weight.tolist() == [0]


class Poison(Hook):
    """Makes a weight infinite for chosen iterations."""

    def __init__(self, iterations) -> None:
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weight = runner.model.head.enc_score_head.weight
        if runner.iter in self.iterations:
            self.kept, self.weight.data = self.weight.data, torch.full_like(self.weight, math.inf)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter in self.iterations:
            self.weight.data = self.kept


def test_step_that_is_not_finite_is_skipped_saved_and_replayed(tmp_path, data, capsys):
    states = []

    class Watch(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            ema = next(h.ema_model for h in runner.hooks if hasattr(h, "ema_model"))
            states.append(
                (
                    runner.model.state_dict()["head.enc_score_head.bias"].clone(),
                    int(ema.steps),
                    [s.img_id for s in data_batch["data_samples"]],
                    [image.clone() for image in data_batch["inputs"]],
                )
            )

    runner = Runner.from_cfg(tiny_config(data, tmp_path, epochs=1))
    runner.register_hook(Poison([1]), priority="VERY_HIGH")
    runner.register_hook(Watch())
    runner.train()
    assert [ema for _, ema, _, _ in states] == [1, 1, 2]
    assert torch.equal(states[0][0], states[1][0]) and not torch.equal(states[1][0], states[2][0])
    out = capsys.readouterr().out
    path = tmp_path / "bad_batches" / "iter_1.pth"
    assert "logits of the encoder proposals" in out and str(path) in out and all(str(i) in out for i in states[1][2])

    saved = torch.load(path, weights_only=True)
    assert saved["iteration"] == 1 and saved["seed"] == 7 and saved["image_ids"] == states[1][2]
    assert not same(saved["batch"]["inputs"], states[1][3])
    losses = replay(runner.model, path)
    assert losses == replay(runner.model, path) and math.isfinite(losses["loss"])
    with torch.no_grad():
        runner.model.head.enc_score_head.weight.fill_(math.inf)
    with pytest.raises(NonFiniteError, match="encoder proposals") as error:
        replay(runner.model, path)
    assert set(error.value.image_ids) <= set(states[1][2])


def test_training_stops_after_many_skipped_steps_and_keeps_five_batches(tmp_path, data):
    runner = Runner.from_cfg(tiny_config(data, tmp_path, epochs=4, options=("train_cfg.max_skipped=7",)))
    runner.register_hook(Poison(range(2, 100)), priority="VERY_HIGH")
    with pytest.raises(UserError, match="iteration 8: 7 steps in a row"):
        runner.train()
    assert sorted(path.name for path in (tmp_path / "bad_batches").iterdir()) == [f"iter_{i}.pth" for i in range(2, 7)]


def test_compiled_parts_train(tmp_path, data):
    cfg = tiny_config(data, tmp_path, epochs=1)
    cfg.compile = dict(backend="eager")
    runner = train(cfg)
    assert runner.iter == 3 and runner.model.backbone._compiled_call_impl is not None
    cfg.compile = dict(backend="no_such_backend")
    with pytest.raises(UserError, match="torch.compile failed .*no_such_backend.*without --compile"):
        train(cfg)


def test_seed_step_depends_on_seed_iteration_and_rank_only():
    def draw(*key):
        seed_step(*key)
        return torch.rand(2).tolist() + np.random.rand(2).tolist()

    assert draw(1, 2, 0) == draw(1, 2, 0)
    assert len({tuple(draw(*key)) for key in ((1, 2, 0), (1, 3, 0), (2, 2, 0), (1, 2, 1))}) == 4


# -- hooks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_stops_also_in_persistent_workers(tmp_path, data, workers):
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            black = [float((image == 0).float().mean()) for image in data_batch["inputs"]]
            seen.append((runner.epoch, min(black), max(black), runner.model.data_preprocessor.use_multi_scale))

    cfg = tiny_config(data, tmp_path, epochs=3, workers=workers)
    cfg.train_dataloader.dataset.pipeline[2] = dict(
        type="ZoomOut", p=1.0, side_range=(4.0, 4.0)
    )  # 15/16 of the picture are black
    cfg.train_dataloader.persistent_workers = workers > 0
    cfg.default_hooks.stop_augmentation = dict(type="StopAugmentation", epoch=1, transforms=["ZoomOut"])
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Look())
    runner.train()
    assert [epoch for epoch, *_ in seen] == [0] * 3 + [1] * 3 + [2] * 3
    assert all(low > 0.8 and scaled for _, low, _, scaled in seen[:3])
    assert all(high < 0.5 and not scaled for _, _, high, scaled in seen[3:])


def test_stop_augmentation_names_an_unknown_transform(tmp_path, data):
    options = ("default_hooks.stop_augmentation={'type': 'StopAugmentation', 'epoch': 1, 'transforms': ['IouCrop']}",)
    with pytest.raises(UserError, match="'IouCrop', which the training pipeline lacks. Did you mean 'IoUCrop'"):
        train(tiny_config(data, tmp_path, options=options))


def test_run_leaves_curves_and_scalars(tmp_path, data, capsys):
    train(tiny_config(data, tmp_path, epochs=3, options=("default_hooks.curves.interval=2", "train_cfg.val_interval=1")))
    picture = cv2.imread(str(tmp_path / "curves.png"))
    colours = {tuple(c) for c in picture.reshape(-1, 3)[::1]}
    assert picture.shape[1] > 500 and (180, 119, 31) in colours and (14, 127, 255) in colours  # both curves are drawn (BGR)
    records = [json.loads(line) for line in (tmp_path / "scalars.json").read_text().splitlines()]
    assert [r["iter"] for r in records if "loss" in r] == [2, 4, 6, 8]
    assert [r["epoch"] for r in records if "coco/bbox_mAP" in r] == [1, 2, 3]
    out = capsys.readouterr().out
    assert "(measured on 4 validation images after epoch 3" in out and "RTDETR debug" in out
    assert "Config:" not in out and "Config:" in next(tmp_path.glob("*/*.log")).read_text()


def test_training_set_smaller_than_a_batch(tmp_path, data):
    with pytest.raises(UserError, match="14 images, fewer than one batch of 32.*--batch-size 14"):
        train(tiny_config(data, tmp_path, batch_size=32))
