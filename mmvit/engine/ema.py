"""Exponential moving average of the weights as RT-DETR trains with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from mmvit.registry import HOOKS, MODELS


@MODELS.register_module()
class WarmupEMA(BaseAveragedModel):
    """``ema = d_t * ema + (1 - d_t) * model`` with ``d_t = decay * (1 - exp(-t / warmups))``, t = 1, 2, ... updates.

    Every floating-point entry of the state dict is averaged, running statistics of BatchNorm included; integer entries
    are copied. The average starts from the model as it is before the first step (`restart`).
    Source: RT-DETR (arXiv 2304.08069), the official training recipe.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, warmups: float = 2000, device: torch.device | None = None
    ) -> None:
        super().__init__(model, device=device, update_buffers=True)
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        if warmups <= 0:
            raise ValueError(f"warmups must be positive, got {warmups}")
        self.decay, self.warmups = decay, warmups

    def decay_at(self, step: int) -> float:
        """The decay of update number `step` (1 for the first)."""
        return self.decay * (1 - math.exp(-step / self.warmups))

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        averaged_param.lerp_(source_param, 1 - self.decay_at(int(steps) + 1))

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Make the average equal to `model` and count updates from 0 again."""
        source = model.state_dict()
        for name, average in self.avg_parameters.items():
            average.copy_(source[name])
        self.steps.zero_()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One update of the average from the state dict of `model`."""
        self.steps += 1
        weight = 1 - self.decay_at(int(self.steps))
        source = model.state_dict()
        averages, sources = [], []
        for name, average in self.avg_parameters.items():
            if average.is_floating_point():
                averages.append(average)
                sources.append(source[name].to(average.device, average.dtype))
            else:
                average.copy_(source[name])
        torch._foreach_lerp_(averages, sources, weight)


@HOOKS.register_module()
class WarmupEMAHook(EMAHook):
    """Keeps a `WarmupEMA`, validates with it, and stores it as the ``state_dict`` of every checkpoint.

    (The weights under training are the ``ema_state_dict`` of a checkpoint, as with MMEngine's hook.) A step that the
    optimizer did not take, because it was skipped or only accumulated gradients, does not move the average.
    """

    def __init__(self, decay: float = 0.9999, warmups: float = 2000) -> None:
        super().__init__(ema_type="WarmupEMA", strict_load=True, decay=decay, warmups=warmups)
        self._swapped = False

    def before_train(self, runner: Any) -> None:
        if not self.ema_model.steps:  # a fresh run: weights were initialised or loaded after the copy was made
            self.ema_model.restart(self.src_model)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        if getattr(runner.optim_wrapper, "stepped", True):
            self.ema_model.update_parameters(self.src_model)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if "ema_state_dict" in checkpoint:
            super().after_load_checkpoint(runner, checkpoint)

    def abort_val(self, runner: Any) -> None:
        """Give the model its training weights back when a validation is broken off."""
        if self._swapped:
            self._swap_ema_parameters()

    @torch.no_grad()
    def _swap_ema_parameters(self) -> None:
        """Exchange the values of the average and of the model, in place."""
        source = self.src_model.state_dict()
        for name, average in self.ema_model.avg_parameters.items():
            kept = average.clone()
            average.copy_(source[name])
            source[name].copy_(kept)
        self._swapped = not self._swapped
