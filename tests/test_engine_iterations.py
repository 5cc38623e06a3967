"""Runs that count iterations: exact resume, schedules that shrink with the run, what they show and leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_tools import CONFIGS, same, tiny_masks, tiny_semantic, train
from mmengine.hooks import Hook
from test_engine_resume import PARTS, SignalAt, interrupted

from mmvit.engine import Runner, assemble, load_config, read_checkpoint
from mmvit.engine.schedule import fit_schedule
from mmvit.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_masks(tmp_path_factory.mktemp("data"))  # 14 pictures: 3 iterations of 4 a pass


def scores(work_dir: Path) -> list[dict]:
    return records(work_dir, "mIoU")


def records(work_dir: Path, key: str) -> list[dict]:
    lines = [json.loads(line) for line in (work_dir / "scalars.json").read_text().splitlines()]
    return [record for record in lines if key in record]


class Rates(Hook):
    """Notes the first group's learning rate at each iteration."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(runner.optim_wrapper.optimizer.param_groups[0]["lr"])


RUN = dict(iters=8, val_interval=4, ema=0.9)


def same_end(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same state, bit for bit, and the same score."""
    ends = [read_checkpoint(run / "iter_8.pth") for run in (a, b)]
    return not same(*({part: end[part] for part in PARTS} for end in ends)) and scores(a)[-1] == scores(b)[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> Path:
    """Work dir of a run of 8 iterations: 2 passes and two thirds, validated after 4 and 8."""
    work_dir = tmp_path_factory.mktemp("whole")
    runner = train(tiny_semantic(data, work_dir, **RUN))
    assert runner.iter == 8 and runner.epoch == 3
    assert {path.name for path in work_dir.glob("*.pth")} == {"iter_4.pth", "iter_8.pth", "best.pth"}
    assert [record["iter"] for record in scores(work_dir)] == [4, 8]
    return work_dir


@pytest.mark.parametrize("cut", [4, 3, 2])  # in a pass; there, before a validation; at the end of a pass
def test_cut_and_resumed_run_equals_the_whole_run(tmp_path, data, whole, cut):
    stop = interrupted(tiny_semantic(data, tmp_path, **RUN), SignalAt(cut))
    saved = read_checkpoint(stop.checkpoint)["meta"]
    assert saved["iter"] == cut + 1 and saved["validation_pending"] == (cut == 3)
    train(tiny_semantic(data, tmp_path, resume=True, workers=cut % 2, **RUN))
    assert same_end(whole, tmp_path) and scores(whole) == scores(tmp_path)


def test_checkpoint_in_the_middle_of_a_pass_is_resumed(tmp_path, data, whole):
    train(tiny_semantic(data, tmp_path, resume=whole / "iter_4.pth", **RUN))
    assert same_end(whole, tmp_path)


def test_accumulation_window_is_finished_before_stopping(tmp_path, data):
    changes = dict(RUN, options=("optim_wrapper.accumulative_counts=2",))
    train(tiny_semantic(data, tmp_path / "whole", **changes))
    stop = interrupted(tiny_semantic(data, tmp_path / "cut", **changes), SignalAt(4))
    assert read_checkpoint(stop.checkpoint)["meta"]["iter"] == 6
    train(tiny_semantic(data, tmp_path / "cut", resume=True, **changes))
    assert same_end(tmp_path / "whole", tmp_path / "cut")


def test_schedule_shrinks_with_the_run(tmp_path, data, capsys):
    runner = Runner.from_cfg(tiny_semantic(data, tmp_path, iters=20, val_interval=20, lr=1.0, auto_scale_lr=False))
    rates = Rates()
    runner.register_hook(rates)
    runner.train()
    out = capsys.readouterr().out
    assert "warm-up of 50 iterations becomes 2: the run has 20" in out and "20 iterations (6.67 passes over the data)" in out
    assert rates.seen[:3] == pytest.approx([0.01, 1.0, 1.0])  # warm-up from a hundredth in 2 iterations, poly from there
    assert rates.seen[2:] == pytest.approx([1 - i / 17 for i in range(18)], abs=1e-6)  # linearly to 0 at the last one


def test_fit_schedule_leaves_what_fits():
    recipe = load_config(CONFIGS / "upernet_ade20k.py").param_scheduler
    assert fit_schedule(recipe, 160_000) == recipe
    warmup, poly = fit_schedule(recipe, 4000)
    assert (warmup["end"], poly["begin"]) == (400, 400) and "end" not in poly
    (poly,) = fit_schedule(recipe, 9)
    assert poly["begin"] == 0
    assert recipe[0].end == recipe[1].begin == 1500  # not changed in place


def test_length_is_given_in_iterations_or_passes(tmp_path, data):
    cfg = tiny_semantic(data, tmp_path, iters=None, epochs=4, val_interval=12)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.max_epochs) == (None, 4)
    runner = train(cfg)
    assert (runner.iter, runner.max_iters, runner.train_loop.val_interval) == (12, 12, 12)
    cfg = tiny_semantic(data, tmp_path, iters=None, epochs=10)
    assert cfg.train_cfg.val_interval is None and Runner.from_cfg(cfg).train_loop.val_interval == 3  # a tenth of the run
    cfg = tiny_semantic(data, tmp_path, iters=80)
    assert cfg.train_cfg.val_interval == 20  # 200 of 800
    with pytest.raises(UserError, match="--epochs and --iters exclude each other"):
        tiny_semantic(data, tmp_path, iters=3, epochs=2)
    with pytest.raises(UserError, match="--iters 10: this recipe counts epochs.*--epochs"):
        assemble(load_config(CONFIGS / "rtdetr_r50.py"), data=data, iters=10)
    with pytest.raises(UserError, match="either max_iters or max_epochs"):
        train(tiny_semantic(data, tmp_path, options=("train_cfg.max_epochs=2",)))


def test_what_a_run_shows_and_leaves(tmp_path, data, capsys):
    options = ("default_hooks.progress.seconds=0", "default_hooks.curves.interval=2")
    train(tiny_semantic(data, tmp_path, iters=4, val_interval=2, options=options))
    out = capsys.readouterr().out
    assert "iter 3/4  loss" in out and "iter 2/4  mIoU 0." in out and "(mAcc 0." in out
    assert "(measured on 4 validation images after iteration 4; best " in out and "worst.png" in out
    assert [record["iter"] for record in records(tmp_path, "loss")] == [2, 4]
    best = read_checkpoint(tmp_path / "best.pth")["meta"]["score"]
    assert best == {"mIoU": max(record["mIoU"] for record in scores(tmp_path))}
    assert {"curves.png", "worst.png", "confusion.png"} <= {path.name for path in tmp_path.iterdir()}


def test_another_length_on_resume_is_told(tmp_path, data, capsys):
    train(tiny_semantic(data, tmp_path, iters=3, val_interval=3))
    runner = train(tiny_semantic(data, tmp_path, iters=6, val_interval=6, resume=True))
    assert runner.iter == 6
    assert "was started with a PolyLR up to iteration 3, this command asks for one up to 6" in capsys.readouterr().out
