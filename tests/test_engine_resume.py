"""A run that is cut and resumed is the run that was not cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_tools import ROOT, same, tiny_config, tiny_data, train
from mmengine.hooks import Hook

from mmvit.engine import Interrupted, Runner, atomic_save, last_checkpoint, read_checkpoint
from mmvit.engine.checkpoint import remove_leftovers
from mmvit.errors import UserError

PARTS = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
AUGMENTED = (  # everything random that a recipe has
    "model.data_preprocessor.multi_scale=[32,64,96]",
    "train_dataloader.dataset.pipeline.2.p=0.8",
    "default_hooks.stop_augmentation={'type': 'StopAugmentation', 'epoch': 2, 'transforms': ['IoUCrop']}",
)


class SignalAt(Hook):
    """Sends a signal to this process in the middle of an iteration, or of a validation batch."""

    def __init__(self, iteration: int = -1, validation: int = -1, signum: int = signal.SIGTERM) -> None:
        self.iteration, self.validation, self.signum = iteration, validation, signum

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.signum)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == self.validation:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


def interrupted(cfg, hook: Hook) -> Interrupted:
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook)
    with pytest.raises(Interrupted) as stop:
        runner.train()
    return stop.value


@pytest.mark.parametrize(
    ("workers", "cut", "options"),
    [
        (0, 4, AUGMENTED),  # batch 1 of epoch 1
        (2, 4, (*AUGMENTED, "train_dataloader.persistent_workers=True")),
        (0, 2, AUGMENTED),  # end of epoch 0
        (0, 7, AUGMENTED),  # after the end of augmentation
        (0, 3, ("optim_wrapper.accumulative_counts=2",)),  # the window is finished first
        (0, 2, ("param_scheduler=[{'type': 'StepLR', 'step_size': 1, 'gamma': 0.5, 'by_epoch': True}]",)),
    ],
)
def test_cut_and_resumed_run_equals_the_whole_run(tmp_path, data, workers, cut, options):
    changes = dict(options=options, epochs=3, workers=workers)
    whole = train(tiny_config(data, tmp_path / "whole", **changes))
    assert whole.iter == 9

    stop = interrupted(tiny_config(data, tmp_path / "cut", **changes), SignalAt(cut))
    assert stop.code == 128 + signal.SIGTERM
    expected = cut + 1 if "optim_wrapper.accumulative_counts=2" not in options else cut + 1 + (cut + 1) % 2
    assert read_checkpoint(stop.checkpoint)["meta"]["iter"] == expected
    resumed = train(tiny_config(data, tmp_path / "cut", resume=True, **changes))
    assert resumed.iter == 9

    a, b = (read_checkpoint(tmp_path / run / "epoch_3.pth") for run in ("whole", "cut"))
    assert not same({part: a[part] for part in PARTS}, {part: b[part] for part in PARTS})
    assert a["ema_state_dict"]["steps"] == (9 if "optim_wrapper.accumulative_counts=2" not in options else 5)
    curves = [
        [line for line in (tmp_path / run / "scalars.json").read_text().splitlines() if "coco" in line]
        for run in ("whole", "cut")
    ]
    assert curves[0] == curves[1]


def test_accumulated_gradients_survive_a_checkpoint_inside_the_window(tmp_path, data):
    options = ("optim_wrapper.accumulative_counts=2",)  # 3 iterations an epoch: epoch 1 ends within a window
    train(tiny_config(data, tmp_path / "whole", options=options, epochs=2))
    train(tiny_config(data, tmp_path / "cut", options=options, epochs=2))
    half = tmp_path / "cut" / "epoch_1.pth"
    assert "gradients" in read_checkpoint(half)
    train(tiny_config(data, tmp_path / "again", options=options, epochs=2, resume=half))
    a, b = (read_checkpoint(tmp_path / run / "epoch_2.pth") for run in ("whole", "again"))
    assert not same({part: a[part] for part in PARTS}, {part: b[part] for part in PARTS})


def test_signal_in_validation_saves_training_weights_and_makes_up_for_it(tmp_path, data):
    changes = dict(epochs=2, options=("train_cfg.val_interval=1",))
    whole = train(tiny_config(data, tmp_path / "whole", **changes))
    stop = interrupted(tiny_config(data, tmp_path / "cut", **changes), SignalAt(validation=1))
    saved = read_checkpoint(stop.checkpoint)
    assert saved["meta"]["iter"] == 3 and saved["meta"]["validation_pending"]
    before = read_checkpoint(tmp_path / "whole" / "epoch_1.pth")
    assert not same(before["state_dict"], saved["state_dict"])  # not swapped with the average
    resumed = train(tiny_config(data, tmp_path / "cut", resume=True, **changes))
    a, b = (read_checkpoint(tmp_path / run / "epoch_2.pth") for run in ("whole", "cut"))
    assert not same({part: a[part] for part in PARTS}, {part: b[part] for part in PARTS})
    assert [r["iter"] for r in _validations(whole)] == [r["iter"] for r in _validations(resumed)] == [3, 6]


def _validations(runner: Runner) -> list[dict]:
    log = next(hook.log for hook in runner.hooks if hasattr(hook, "log"))
    return [record for record in log.records if "coco/bbox_mAP" in record]


def test_second_signal_kills(tmp_path, data):
    code = (
        "import signal, sys; sys.path.insert(0, sys.argv[1]); from engine_tools import *\n"
        "from test_engine_resume import Path, Runner, SignalAt\n"
        "r = Runner.from_cfg(tiny_config(Path(sys.argv[2]), Path(sys.argv[3])))\n"
        "r.register_hook(SignalAt(1, signum=signal.SIGINT)); r.register_hook(SignalAt(1, signum=signal.SIGINT)); r.train()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tests"), str(data), str(tmp_path)], capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGINT
    assert not list(tmp_path.glob("interrupt_*"))


def test_command_stops_on_sigterm_and_resumes(tmp_path, data):
    command = [
        sys.executable,
        str(ROOT / "tools/train.py"),
        str(ROOT / "configs/rtdetr_shapes.py"),
        "--data",
        str(data),
        "--work-dir",
        str(tmp_path / "run"),
        "--size",
        "64",
        "--batch-size",
        "4",
        "--workers",
        "1",
        "--seed",
        "3",
        "--device",
        "cpu",
        "--cfg-options",
        "model.arch=debug",
        "default_hooks.progress.seconds=0",
    ]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        [*command, "--epochs", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 2/"):
            os.killpg(process.pid, signal.SIGTERM)  # a scheduler signals the data loading processes too
            break
    lines += process.stdout.readlines()
    assert process.wait(timeout=60) == 143
    assert "--resume" in "".join(lines[-3:])
    iteration = read_checkpoint(last_checkpoint(tmp_path / "run"))["meta"]["iter"]
    done = subprocess.run(
        [*command, "--epochs", str(iteration // 3 + 1), "--resume"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"iteration {iteration} of" in done.stdout and "(measured on 4 validation images" in done.stdout


def test_resume_without_checkpoint_starts_afresh_and_says_so(tmp_path, data, capsys):
    runner = train(tiny_config(data, tmp_path / "new", epochs=1, resume=True))
    assert runner.iter == 3
    assert "no checkpoint in" in capsys.readouterr().out


def test_resume_refuses_other_data_seed_and_network(tmp_path, data):
    train(tiny_config(data, tmp_path, epochs=1))
    with pytest.raises(UserError, match="seed 7, this run asks for 8"):
        train(tiny_config(data, tmp_path, resume=True, seed=8))
    with pytest.raises(UserError, match="8 classes, the data set has 2"):
        train(tiny_config(data, tmp_path, resume=True, options=("train_dataloader.dataset.classes=('circle','moon')",)))
    with pytest.raises(UserError, match="does not fit the model"):
        train(tiny_config(data, tmp_path, resume=True, options=("model.neck={'hidden_dim': 32}",)))


def test_damaged_checkpoint_is_named(tmp_path, data):
    train(tiny_config(data, tmp_path, epochs=1))
    whole = (tmp_path / "epoch_1.pth").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (tmp_path / "epoch_1.pth").write_bytes(content)
        with pytest.raises(UserError, match="epoch_1.pth cannot be read"):
            train(tiny_config(data, tmp_path, resume=True))


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save(dict(meta=Evil()), tmp_path / "evil.pth")
    with pytest.raises(UserError, match="evil.pth cannot be read"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_moved_work_dir_is_resumed(tmp_path, data):
    train(tiny_config(data, tmp_path / "old", epochs=1))
    (tmp_path / "old").rename(tmp_path / "new")
    assert last_checkpoint(tmp_path / "new") == tmp_path / "new" / "epoch_1.pth"


def test_killed_save_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "epoch_1.pth"
    atomic_save(dict(value=torch.arange(5)), path)
    code = (
        "import os, sys, torch; from mmvit.engine import checkpoint\n"
        "def cut(obj, file): file.write(b'half'); file.flush(); os._exit(9)\n"
        "torch.save = cut; checkpoint.atomic_save(dict(value=torch.zeros(5)), sys.argv[1])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == 9
    assert read_checkpoint(path)["value"].tolist() == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_failed_save_leaves_nothing_behind(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        atomic_save(lambda: None, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_rotated_and_best_is_kept(tmp_path, data):
    runner = train(tiny_config(data, tmp_path, epochs=4, options=("train_cfg.val_interval=1",)))
    assert {path.name for path in tmp_path.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth", "best.pth"}
    best = read_checkpoint(tmp_path / "best.pth")
    scores = [record["coco/bbox_mAP"] for record in _validations(runner)]
    assert best["meta"]["score"]["coco/bbox_mAP"] == max(scores)
    assert "optimizer" not in best
    assert read_checkpoint(tmp_path / "epoch_4.pth")["message_hub"]["runtime_info"]["best_score"] == max(scores)
