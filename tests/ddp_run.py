"""Started by test_engine_distributed.py in every process: ``ddp_run.py DATA OUT``, alone or under torchrun."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from engine_tools import tiny_config
from mmengine.hooks import Hook
from torch.nn.modules.batchnorm import _BatchNorm

from mmvit.engine import Interrupted, Runner
from mmvit.engine.run import leave_group
from mmvit.engine.runner import DEFAULT_HOOKS

DISTRIBUTED = "RANK" in os.environ
RANK = int(os.environ.get("RANK", 0))


class FixedNorms(Hook):
    """BatchNorm uses its running statistics, so that a batch may be split between processes."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.bare_model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class FailOnce(Hook):
    """The predictions of the first process are not finite in iteration 1."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1 and RANK == 0:
            self.weight = runner.bare_model.head.enc_score_head.weight.data
            self.kept = self.weight.clone()
            self.weight.fill_(math.inf)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 1 and RANK == 0:
            self.weight.copy_(self.kept)
        print(f"rank {RANK} iteration {runner.iter} stepped {runner.optim_wrapper.stepped}", flush=True)


class SignalToSecond(Hook):
    """The last process alone gets a signal."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if RANK == 1 and runner.iter == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def config(data: Path, work_dir: Path, batch: int):
    options = (
        "optim_wrapper.optimizer={'type': 'SGD', 'lr': 1.0}",
        "optim_wrapper.clip_grad=None",
        "param_scheduler=None",
        "model.head={'num_denoising': 0}",
        "default_hooks.ema=None",
    )
    cfg = tiny_config(
        data,
        work_dir,
        options=options,
        epochs=1,
        batch_size=batch,
        auto_scale_lr=False,
        launcher="pytorch" if DISTRIBUTED else "none",
    )
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    return cfg


def evaluate(cfg, out: Path) -> None:
    """Write the detections of the network with random weights, and their scores."""
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = None
    cfg.default_hooks = dict.fromkeys((*DEFAULT_HOOKS, "ema"))
    cfg.test_evaluator.outfile = str(out.with_suffix(".detections.json"))
    scores = Runner.from_cfg(cfg).test()
    if RANK == 0:
        out.write_text(json.dumps(scores))


def main() -> None:
    torch.set_num_threads(1)
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    world = 2 if DISTRIBUTED else 1

    class OneStep(Hook):
        """Records the gradients of one step on weights that are far from their special initial values."""

        def before_train(self, runner):
            noise = torch.Generator().manual_seed(0)
            for parameter in runner.bare_model.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
            runner.optim_wrapper.step = lambda: self.record(runner)

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.images = [sample.img_id for sample in data_batch["data_samples"]]

        def record(self, runner):
            gradients = {name: p.grad.clone() for name, p in runner.bare_model.named_parameters()}
            torch.save(dict(gradients=gradients, images=self.images), out / f"step_{world}_{RANK}.pth")
            raise KeyboardInterrupt

    runner = Runner.from_cfg(config(data, out / f"step{world}", 4 // world))
    runner.register_hook(FixedNorms())
    runner.register_hook(OneStep(), priority="LOWEST")
    with suppress(KeyboardInterrupt):
        runner.train()
    evaluate(config(data, out / f"val{world}", 2), out / f"scores_{world}.json")
    if not DISTRIBUTED:
        return

    runner = Runner.from_cfg(config(data, out / "skip", 2))
    runner.register_hook(FailOnce())
    runner.train()

    cfg = config(data, out / "signal", 2)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(SignalToSecond())
    try:
        runner.train()
    except Interrupted as stop:
        print(f"rank {RANK} stopped after iteration {runner.iter} with status {stop.code}", flush=True)
    torch.distributed.barrier()  # the first process has written the checkpoint
    resumed = Runner.from_cfg(dict(cfg, resume=True))
    resumed.train()
    print(f"rank {RANK} resumed to {resumed.iter} of {resumed.max_iters}", flush=True)
    leave_group()


if __name__ == "__main__":
    main()
