"""Hooks: progress and curves, checkpoints, clean interruption, the end of strong augmentation."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmvit.engine.log import console, say, shown
from mmvit.engine.loops import StopValidation
from mmvit.engine.scalars import HEADLINES, ScalarLog, draw_curves, headline, score_text
from mmvit.errors import UserError, did_you_mean
from mmvit.registry import HOOKS


@HOOKS.register_module()
class RuntimeHook(Hook):
    """Puts epoch and iteration where models can read them (MMEngine's message hub), without histories of every loss."""

    priority = "VERY_HIGH"

    def before_train(self, runner: Any) -> None:
        runner.message_hub.update_info_dict(
            dict(epoch=runner.epoch, iter=runner.iter, max_epochs=runner.max_epochs, max_iters=runner.max_iters)
        )

    def before_train_epoch(self, runner: Any) -> None:
        runner.message_hub.update_info("epoch", runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        runner.message_hub.update_info("iter", runner.iter)


def outlive_signals(worker_id: int) -> None:
    """Let a data loading process end when its parent says so, not on signals to the whole job.

    A terminal or a scheduler that stops a run signals every process of it; without its loaders training could not finish the
    step under way. (A loader whose parent is gone ends by itself.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class Interrupted(SystemExit):
    """Training stopped on a signal after its state was saved to `checkpoint`; exit status 128 + signal number."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(128 + signum)
        self.signum, self.checkpoint = signum, checkpoint


@HOOKS.register_module()
class InterruptHook(Hook):
    """On SIGTERM or SIGINT finishes the step, saves ``interrupt_iter_N.pth`` and raises `Interrupted`. A second signal kills.

    With gradient accumulation the window is finished first. In distributed training a signal to any process stops all.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self._signum = 0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: Any) -> None:
        self._signum = 0
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}

    def on_exit(self, runner: Any) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _on_signal(self, signum: int, frame: Any) -> None:
        if self._signum:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._signum = signum

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        wrapper = runner.optim_wrapper
        if wrapper.inner_count % wrapper._accumulative_counts == 0 and self._asked(runner):
            self._save_and_stop(runner, runner.iter + 1)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._signum and not runner.distributed:
            raise StopValidation

    def stop_now(self, runner: Any) -> None:
        """Between two steps: save and stop."""
        self._save_and_stop(runner, runner.iter)

    def _asked(self, runner: Any) -> bool:
        if runner.distributed:
            flag = torch.tensor(float(self._signum), device=runner.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self._signum = int(flag.item())
        return bool(self._signum)

    def _save_and_stop(self, runner: Any, iteration: int) -> None:
        name = f"interrupt_iter_{iteration}.pth"
        runner.save_checkpoint(runner.work_dir, name, meta=dict(iter=iteration))
        runner.mark_last(name)
        raise Interrupted(self._signum, Path(runner.work_dir) / name)


def counts_epochs(runner: Any) -> bool:
    """Whether the training loop counts epochs; else iterations."""
    return getattr(runner.train_loop, "by_epoch", True)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves every `interval` epochs or iterations and at the end; keeps the last `keep` and the best.

    An old checkpoint goes only after the new one is safely on disk.

    Args:
        interval: epochs or iterations between two checkpoints; as many as between two validations if None.
        by_epoch: whether `interval` counts epochs or iterations; what the training loop counts if None.
        best: metric whose largest value marks the best checkpoint (``best.pth``); ``auto`` for the first of `HEADLINES` that
            is measured, None for none.
    """

    priority = "VERY_LOW"

    def __init__(
        self, interval: int | None = None, by_epoch: bool | None = None, keep: int = 2, best: str | None = "auto"
    ) -> None:
        if (interval is not None and interval < 1) or keep < 1:
            raise UserError(f"default_hooks.checkpoint: interval={interval} and keep={keep} must be 1 or more.")
        self.interval, self.by_epoch, self.keep, self.best = interval, by_epoch, keep, best

    def before_train(self, runner: Any) -> None:
        if self.by_epoch is None:
            self.by_epoch = counts_epochs(runner)
        if self.interval is None:
            self.interval = runner.train_loop.val_interval if self.by_epoch == counts_epochs(runner) else 1

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        done = runner.iter + 1
        if not self.by_epoch and (done % self.interval == 0 or done == runner.max_iters):
            self._save(runner, f"iter_{done}.pth", done)

    def after_train_epoch(self, runner: Any) -> None:
        done = runner.epoch + 1
        if self.by_epoch and (done % self.interval == 0 or done == runner.max_epochs):
            self._save(runner, f"epoch_{done}.pth", runner.iter)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if runner.train_loop is None:
            return
        runner.train_loop.validation_pending = False
        best = headline(metrics or {}) if self.best == "auto" else self.best
        if best is None:
            return
        score = (metrics or {}).get(best)
        if score is None:
            raise UserError(
                f"default_hooks.checkpoint.best={best!r} is not among the measured scores."
                f"{did_you_mean(best, metrics or {})} Measured: {', '.join(metrics or {}) or 'none'}."
            )
        if not score > runner.message_hub.runtime_info.get("best_score", -math.inf):
            return
        runner.message_hub.update_info("best_score", float(score))
        runner.save_checkpoint(
            runner.work_dir,
            "best.pth",
            save_optimizer=False,
            save_param_scheduler=False,
            meta=dict(iter=runner.iter, score={best: float(score)}),
        )
        info = runner.message_hub.runtime_info
        if info.get("saved_iter") == runner.iter:  # the checkpoint of this moment learns of the new best score
            self._save(runner, info["kept_checkpoints"][-1], runner.iter)

    def _save(self, runner: Any, name: str, iteration: int) -> None:
        kept = [other for other in runner.message_hub.runtime_info.get("kept_checkpoints", []) if other != name] + [name]
        runner.message_hub.update_info("kept_checkpoints", kept[-self.keep :])
        runner.message_hub.update_info("saved_iter", iteration)
        runner.save_checkpoint(runner.work_dir, name, meta=dict(iter=iteration))
        runner.mark_last(name)
        if is_main_process():
            for other in kept[: -self.keep]:
                (Path(runner.work_dir) / other).unlink(missing_ok=True)


@HOOKS.register_module()
class StopAugmentation(Hook):
    """Trains the epochs from `epoch` (0-based) on without `transforms` of the training pipeline and without multi-scale.

    Source: RT-DETRv2 (arXiv 2407.17140), whose recipes turn strong augmentation off for the last epochs.

    Args:
        transforms: class names of transforms to leave out.
        multi_scale: whether the data preprocessor's multi-scale resizing ends too.
    """

    def __init__(
        self, epoch: int, transforms: Sequence[str] = ("PhotometricDistort", "ZoomOut", "IoUCrop"), multi_scale: bool = True
    ) -> None:
        self.epoch, self.transforms, self.multi_scale = epoch, tuple(transforms), multi_scale

    def before_train(self, runner: Any) -> None:
        names = [type(step).__name__ for step in runner.train_dataloader.dataset.pipeline]
        for name in self.transforms:
            if name not in names:
                raise UserError(
                    f"StopAugmentation.transforms names {name!r}, which the training pipeline lacks."
                    f"{did_you_mean(name, names)} It has {', '.join(names)}."
                )
        self._stopped = False

    def before_train_epoch(self, runner: Any) -> None:
        if self._stopped or runner.epoch < self.epoch:
            return
        self._stopped = True
        loader = runner.train_dataloader
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if type(step).__name__ not in self.transforms]
        loader._iterator = None  # persistent workers hold a copy of the old pipeline: end them
        model = getattr(runner.model, "module", runner.model)
        if self.multi_scale:
            model.data_preprocessor.use_multi_scale = False
        also = " and multi-scale" if self.multi_scale else ""
        say(f"epoch {runner.epoch + 1}: {', '.join(self.transforms)}{also} end here")


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows loss, learning rate, throughput, remaining time and the last score: a bar on a terminal, else plain lines.

    Args:
        seconds: time between two plain lines.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._bar: Progress | None = None
        self._score = ""

    def before_train(self, runner: Any) -> None:
        self._loss, self._count, self._shown_at = 0.0, 0, time.monotonic()
        self._speed = 0.0  # seconds per iteration, smoothed
        if is_main_process() and console().is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TextColumn("{task.fields[info]}"))
            self._bar = Progress(*columns, console=console(), refresh_per_second=2)
            self._task = self._bar.add_task("training", total=runner.max_iters, completed=runner.iter, info="")
            self._bar.start()

    def on_exit(self, runner: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        if outputs and "loss" in outputs:
            self._loss, self._count = self._loss + torch.as_tensor(outputs["loss"]).detach(), self._count + 1
        self._iterations = getattr(self, "_iterations", 0) + 1
        elapsed = time.monotonic() - self._shown_at
        if elapsed >= (0.5 if self._bar else self.seconds) or runner.iter + 1 == runner.max_iters:
            self._show(runner, elapsed / self._iterations)

    def _show(self, runner: Any, speed: float) -> None:
        self._speed = speed if not self._speed else 0.7 * self._speed + 0.3 * speed
        done = runner.iter + 1
        loss = f"loss {float(self._loss) / self._count:.3f}" if self._count else "loss -"
        images = runner.train_dataloader.batch_size * runner.world_size / self._speed
        lr = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)
        left = duration((runner.max_iters - done) * self._speed)
        info = f"{loss}  lr {lr:.2g}  {images:.1f} img/s  {left} left{self._score}"
        length = len(runner.train_dataloader)
        if not counts_epochs(runner):
            where, batch = "training" if self._bar else f"iter {done}/{runner.max_iters}", ""
        else:
            where, batch = f"epoch {runner.epoch + 1}/{runner.max_epochs}", f"  {runner.iter % length + 1}/{length}"
        if self._bar:
            self._bar.update(self._task, completed=done, description=where, info=info)
        else:
            say(f"{where}{batch}  {info}")
        self._loss, self._count, self._iterations, self._shown_at = 0.0, 0, 0, time.monotonic()

    def before_val(self, runner: Any) -> None:
        self._start_evaluation(runner, runner.val_dataloader, "validating")

    def before_test(self, runner: Any) -> None:
        self._start_evaluation(runner, runner.test_dataloader, "evaluating")

    def _start_evaluation(self, runner: Any, loader: Any, what: str) -> None:
        self._eval_started = self._eval_shown = time.monotonic()
        self._eval_total, self._eval_what = len(loader), what
        self._eval_task = self._bar.add_task(what, total=len(loader), info="") if self._bar else None

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        now, done = time.monotonic(), batch_idx + 1
        if self._eval_task is not None:
            self._bar.update(self._eval_task, completed=done)
        elif now - self._eval_shown > self.seconds:
            left = (now - self._eval_started) / done * (self._eval_total - done)
            say(f"{self._eval_what}  {done}/{self._eval_total}  {duration(left)} left")
            self._eval_shown = now

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if self._eval_task is not None:
            self._bar.remove_task(self._eval_task)
            self._eval_task = None
        if metrics:
            text = score_text(metrics)
            self._score = f"  {text.split(' (')[0]}"
            unit, done, end = (
                ("epoch", runner.epoch, runner.max_epochs) if counts_epochs(runner) else ("iter", runner.iter, runner.max_iters)
            )
            say(f"{unit} {done}/{end}  {text}  ({duration(time.monotonic() - self._eval_started)})")
        self._shown_at = time.monotonic()


@HOOKS.register_module()
class CurveHook(Hook):
    """Writes ``scalars.json`` (one JSON record a line) and draws loss and score to ``curves.png`` in the work dir.

    Args:
        interval: iterations averaged in one record.
        metric: score that is drawn and summed up at the end; the first of `HEADLINES` that is measured if None.
    """

    priority = "LOW"

    def __init__(self, interval: int = 20, metric: str | None = None) -> None:
        self.interval, self.metric = interval, metric

    def before_train(self, runner: Any) -> None:
        self.log = ScalarLog(Path(runner.work_dir) / "scalars.json", until=runner.iter) if is_main_process() else None
        self._sums: dict[str, Any] = {}
        self._count = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        if self.log is None:
            return
        for key, value in (outputs or {}).items():
            self._sums[key] = self._sums.get(key, 0.0) + torch.as_tensor(value).detach()
        self._count += bool(outputs)
        done = runner.iter + 1
        if done % self.interval == 0 and self._count:
            record = {key: float(value) / self._count for key, value in self._sums.items()}
            lr = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)
            norm = getattr(runner.optim_wrapper, "grad_norm", None)
            self.log.add(dict(iter=done, epoch=done / len(runner.train_dataloader), lr=lr, grad_norm=norm, **record))
            self._sums, self._count = {}, 0

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if metrics and getattr(self, "log", None) is not None:
            self.log.add(dict(iter=runner.iter, epoch=float(runner.epoch), **metrics))
            self._draw(runner)

    def after_train(self, runner: Any) -> None:
        if self.log is None:
            return
        self._draw(runner)
        unit, name = ("epoch", "epoch") if counts_epochs(runner) else ("iter", "iteration")
        metric = self._metric()
        scores = [(r[metric], r[unit]) for r in self.log.records if metric and r.get(metric) is not None]
        if scores:
            (last, when), (best, best_when) = scores[-1], max(scores)
            images = len(runner.val_dataloader.dataset)
            say(
                f"{HEADLINES.get(metric, metric)} {last:.3f} (measured on {images} validation images after {name} {when:.0f}; "
                f"best {best:.3f} after {name} {best_when:.0f})"
            )
        say(f"checkpoints, curves.png and scalars.json are in {shown(runner.work_dir)}")

    def _metric(self) -> str | None:
        return self.metric or next(filter(None, map(headline, reversed(self.log.records))), None)

    def _draw(self, runner: Any) -> None:
        draw_curves(self.log.records, self._metric(), Path(runner.work_dir) / "curves.png", counts_epochs(runner))


@HOOKS.register_module()
class WorstImagesHook(Hook):
    """Draws the pictures with the lowest mean IoU of the last evaluation to ``worst.png`` in the work dir.

    Args:
        count: pictures to show.
    """

    priority = "LOW"

    def __init__(self, count: int = 12) -> None:
        self.count = count
        self._worst: Any = None

    def before_val(self, runner: Any) -> None:
        self._start(runner.val_evaluator, runner.val_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        self._start(runner.test_evaluator, runner.test_dataloader.dataset)

    def _start(self, evaluator: Any, dataset: Any) -> None:
        from mmvit.evaluation import WorstImages

        self._metric = next((metric for metric in evaluator.metrics if hasattr(metric, "batch_miou")), None)
        if self._metric is None:
            raise UserError("WorstImagesHook needs a SemanticMetric, which scores single pictures. Remove the hook.")
        self._worst, self._metainfo = WorstImages(self.count), dataset.metainfo

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for sample, score in zip(outputs, self._metric.batch_miou, strict=True):
            self._worst.add(sample.img_path, sample.gt_sem_seg.data, sample.pred_sem_seg.data, score)

    after_test_iter = after_val_iter

    def after_train(self, runner: Any) -> None:
        self._draw(runner)

    def after_test(self, runner: Any) -> None:
        self._draw(runner)

    def _draw(self, runner: Any) -> None:
        """Join what the processes have kept, and draw it."""
        from mmvit.evaluation import draw_gallery

        if self._worst is None:
            return
        first, *others = all_gather_object(self._worst)
        for other in others:
            first.merge(other)
        if is_main_process() and len(first):
            path = Path(runner.work_dir) / "worst.png"
            draw_gallery(first.items(), path, self._metainfo["classes"], self._metainfo["palette"])
            say(f"the {len(first)} pictures with the lowest mIoU are in {shown(path)}")


def duration(seconds: float) -> str:
    """``12:03`` or ``3:12:03``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
