"""The training loops: they resume in the middle of an epoch, stop cleanly on a signal, skip steps that are not finite."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from mmvit.engine.bad_batches import FOLDER, SkippedSteps
from mmvit.engine.optim import AmpWrapper, Failure
from mmvit.errors import UserError
from mmvit.losses import NonFiniteError
from mmvit.registry import LOOPS


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed Python, NumPy and PyTorch from (run seed, iteration, rank): what a step draws depends on nothing else."""
    words = np.random.SeedSequence((seed, iteration, rank)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


class StopValidation(Exception):
    """A signal asks to stop while the model is being validated."""


class ExactTrainLoop(EpochBasedTrainLoop):
    """What the training loops share: MMEngine's epoch loop, made exact.

    * The state of the loop is one number, the iterations done. Iteration i is batch ``i % len(dataloader)`` of epoch
      ``i // len(dataloader)``, also after a resume: the sampler skips what was read before.
    * All randomness in the model is reseeded before every step (`seed_step`).
    * A step with a value that is not finite is skipped (`mmvit.engine.AmpWrapper`) and its batch saved.
    * A validation that was due when the run was cut is made up for on resume.

    An epoch is a pass over the data. `by_epoch` says what a loop counts in: whether `val_begin` and `val_interval` are epochs
    or iterations, and what hooks show.
    """

    by_epoch: ClassVar[bool]

    def __init__(
        self, runner: Any, dataloader: DataLoader | dict, max_epochs: int, val_begin: int, val_interval: int, max_skipped: int
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval)
        if len(self.dataloader) == 0:
            raise UserError(
                f"The training set has {len(self.dataloader.dataset)} images, fewer than one batch of "
                f"{self.dataloader.batch_size}: there is nothing to train on. Use --batch-size "
                f"{max(1, len(self.dataloader.dataset))} or less."
            )
        self.skipped_steps = SkippedSteps(f"{runner.work_dir}/{FOLDER}", max_in_row=max_skipped)
        self.validation_pending = False
        self._first_batch = 0

    def progress(self) -> tuple[int, int]:
        """How far training is and how far it goes, in the unit that the loop counts in."""
        return (self._epoch, self._max_epochs) if self.by_epoch else (self._iter, self._max_iters)

    def seek(self, iteration: int) -> None:
        """Continue after `iteration` steps."""
        self._iter = iteration
        self._epoch, self._first_batch = divmod(iteration, len(self.dataloader))

    def run(self) -> nn.Module:
        """Train until the last iteration is done."""
        try:
            self.runner.call_hook("before_train")
            if self.validation_pending:
                self._validate()
            while self._iter < self._max_iters and not self.stop_training:
                self.run_epoch()
                if self.by_epoch and self._validation_due(self._epoch):
                    self._validate()
            self.runner.call_hook("after_train")
        finally:
            self.runner.call_hook("on_exit")
        return self.runner.model

    def run_epoch(self) -> None:
        """The rest of the current epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        first, self._first_batch = self._first_batch, 0
        sampler = self.dataloader.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self._epoch)
        if first:
            if not hasattr(sampler, "skip"):
                raise UserError(
                    f"{type(sampler).__name__} cannot continue in the middle of an epoch. Use "
                    "sampler=dict(type='ResumableSampler'), or resume from a checkpoint of a whole epoch."
                )
            sampler.skip(first * self.dataloader.batch_size)
        for batch, data_batch in enumerate(self.dataloader, start=first):
            ends = batch + 1 == len(self.dataloader)
            self.validation_pending = (
                ends and self._validation_due(self._epoch + 1) if self.by_epoch else self._validation_due(self._iter + 1)
            )
            self.run_iter(batch, data_batch)
            if self.validation_pending and not self.by_epoch:
                self._validate()
            if self._iter == self._max_iters or (self.stop_training and not self.by_epoch):
                break
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """One step on `data_batch`, batch `idx` of the epoch."""
        seed_step(self.runner.seed, self._iter, get_rank())
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        wrapper, outputs = self.runner.optim_wrapper, None
        try:
            outputs = self.runner.model.train_step(data_batch, optim_wrapper=wrapper)
        except NonFiniteError as error:
            if not isinstance(wrapper, AmpWrapper):
                raise
            wrapper.reject(Failure(error.tensor_name, tuple(error.image_ids)))
        failure = getattr(wrapper, "failure", None)
        if failure is None:
            self.skipped_steps.taken()
        else:
            outputs = None
            self.skipped_steps.skipped(self.runner.logger, failure, data_batch, self._iter, self.runner.seed)
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _validation_due(self, done: int) -> bool:
        """Whether to validate once `done` epochs or iterations are done."""
        end = self._max_epochs if self.by_epoch else self._max_iters
        return self.runner.val_loop is not None and done >= self.val_begin and (done % self.val_interval == 0 or done == end)

    def _validate(self) -> None:
        self.validation_pending = True
        try:
            self.runner.val_loop.run()
        except StopValidation:
            self.runner.call_hook("abort_val")
            self.runner.call_hook("stop_now")
        self.validation_pending = False
        self.runner.model.train()


@LOOPS.register_module()
class EpochTrainLoop(ExactTrainLoop):
    """Trains `max_epochs` passes over the data; see `ExactTrainLoop`.

    Args:
        val_begin, val_interval: first epoch that is validated, and how many epochs lie between two validations.
        max_skipped: consecutive skipped steps after which training stops.
    """

    by_epoch = True

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        max_skipped: int = 20,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, max_skipped)


@LOOPS.register_module()
class IterTrainLoop(ExactTrainLoop):
    """Trains `max_iters` iterations, or, where `max_epochs` is given instead, so many passes over the data; see
    `ExactTrainLoop`.

    Args:
        val_begin, val_interval: first iteration after which is validated, and how many iterations lie between two
            validations; a tenth of the run if None. The last iteration is always followed by one.
        max_skipped: consecutive skipped steps after which training stops.
    """

    by_epoch = False

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict,
        max_iters: int | None = None,
        max_epochs: int | None = None,
        val_begin: int = 1,
        val_interval: int | None = None,
        max_skipped: int = 20,
    ) -> None:
        if (max_iters is None) == (max_epochs is None):
            raise UserError("train_cfg: IterTrainLoop needs either max_iters or max_epochs (passes over the data).")
        super().__init__(runner, dataloader, max_epochs or 1, val_begin, val_interval or 1, max_skipped)
        if max_iters is not None:
            self._max_iters = int(max_iters)
            self._max_epochs = -(-self._max_iters // len(self.dataloader))
        self.val_interval = val_interval or max(1, self._max_iters // 10)
