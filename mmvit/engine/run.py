"""Train and test from Python; the commands do the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from torch import nn

from mmvit.engine.assembly import assemble
from mmvit.engine.checkpoint import atomic_text, last_checkpoint, read_checkpoint
from mmvit.engine.config import load_config
from mmvit.engine.datasets import data_name
from mmvit.engine.log import say, shown
from mmvit.engine.report import cost, hash_config, input_size, versions
from mmvit.engine.runner import Runner, same_classes
from mmvit.engine.scalars import class_table, number, score_text
from mmvit.errors import UserError


def train(config: str | Path | Config, **changes: Any) -> nn.Module:
    """Train by a config and return the model with its training weights; `changes` are the arguments of `assemble`.

    ``train("configs/rtdetr_r18.py", data="path/to/mine", epochs=50, batch_size=4)``
    """
    cfg = assemble(config if isinstance(config, Config) else load_config(config), **changes)
    return Runner.from_cfg(cfg).train()


def leave_group() -> None:
    """Wait until all processes of a distributed run are done, then close their connections, so that each ends cleanly."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def test(
    config: str | Path | Config,
    checkpoint: str | Path,
    out: str | Path | None = None,
    eval_layers: int | None = None,
    deploy: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Evaluate a checkpoint on the validation data.

    Args:
        checkpoint: file or name of published weights; of our own checkpoints the averaged weights are used.
        out: where the result is written as JSON; ``metrics.json`` in the work dir by default.
        eval_layers: evaluate with the first so many decoder layers.
        deploy: fold branches and normalisations into convolutions first.
        changes: arguments of `assemble`.

    Returns:
        What was evaluated (``task``, ``config`` and ``config_hash``, ``arch``, ``backbone``, ``checkpoint`` and its
        ``sha256``), how (``eval_layers``, ``deploy``, ``slide``, ``tta``, ``device``, ``threads``, ``versions``), on what
        (``data``, ``images``), ``scores``, and the cost: ``parameters``, ``flops`` (two per multiply-add) and ``latency``
        (median seconds of a forward pass) for one picture of ``input_size`` (height, width).
    """
    from mmvit.architectures import load_weights
    from mmvit.weights import resolve, sha256

    cfg = assemble(config if isinstance(config, Config) else load_config(config), training=False, **changes)
    path = Path(checkpoint) if Path(checkpoint).is_file() else Path(resolve(str(checkpoint)))
    data, config_hash, size = data_name(cfg), hash_config(cfg), input_size(cfg)
    for key in (
        "train_dataloader",
        "train_cfg",
        "optim_wrapper",
        "param_scheduler",
        "val_dataloader",
        "val_cfg",
        "val_evaluator",
    ):
        cfg.pop(key, None)
    cfg.model.pop("backbone_pretrained", None)
    worst = cfg.get("default_hooks", {}).get("worst")
    cfg.default_hooks = dict.fromkeys((*cfg.get("default_hooks", {}), "checkpoint", "curves", "interrupt"))
    cfg.default_hooks.update(progress=dict(type="ProgressHook"), worst=worst)
    runner = Runner.from_cfg(cfg)
    classes = tuple(load_weights(runner.bare_model, path).get("classes") or ())
    same_classes(classes, tuple(cfg.test_dataloader.dataset.classes), str(path), "evaluate it on data with its classes")
    if eval_layers is not None:
        if not hasattr(runner.bare_model, "set_eval_layers"):
            raise UserError(f"--eval-layers: {type(runner.bare_model).__name__} has no decoder layers to choose.")
        runner.bare_model.set_eval_layers(eval_layers)
    if deploy:
        runner.bare_model.eval().deploy()
    scores = {key: number(value) for key, value in runner.test().items()}
    report = dict(
        config=Path(cfg.filename).stem if cfg.filename else None,
        config_hash=config_hash,
        task=_task(runner.bare_model),
        arch=getattr(runner.bare_model, "arch", None),
        backbone=getattr(runner.bare_model, "backbone_name", None),
        checkpoint=str(path),
        sha256=sha256(path),
        data=data,
        images=len(runner.test_dataloader.dataset),
        eval_layers=eval_layers,
        deploy=deploy,
        slide=(cfg.model.get("test_cfg") or {}).get("mode") == "slide",
        tta=any(step.type == "TestTimeAug" for step in cfg.test_dataloader.dataset.pipeline),
        scores=scores,
        **cost(runner.bare_model, size, runner.device),
        versions=versions(),
    )
    target = Path(out) if out else Path(runner.work_dir) / "metrics.json"
    if runner.rank == 0:
        atomic_text(json.dumps(report, indent=2) + "\n", target)
    say(f"{_summary(report)}\nwritten to {shown(target)}")
    return report


def _task(model: nn.Module) -> str | None:
    """What a model does; a mask classifier with one kind of output does that."""
    outputs = getattr(model, "outputs", ())
    return outputs[0] if len(outputs) == 1 else getattr(model, "task", None)


def _summary(report: dict[str, Any]) -> str:
    """A report in a few lines."""
    scores, size = report["scores"], "x".join(map(str, report["input_size"]))
    lines = [
        class_table(scores),
        f"{score_text(scores)} (measured on {report['images']} images of {report['data']})",
        f"{report['parameters'] / 1e6:.2f} M parameters, {report['flops'] / 1e9:.2f} GFLOPs and "
        f"{report['latency'] * 1e3:.1f} ms at {size} on {report['device']}",
    ]
    return "\n".join(filter(None, lines))


def replay_file(config: str | Path | Config, path: str | Path, **changes: Any) -> int:
    """Run a saved bad batch again, with the weights of ``load_from`` or those last saved in training.

    Returns 0 when everything is finite, else 1; the losses or the tensor at fault are printed.
    """
    from mmvit.engine.bad_batches import replay
    from mmvit.losses import NonFiniteError
    from mmvit.weights import load_into

    cfg = assemble(config if isinstance(config, Config) else load_config(config), **changes)
    cfg.model.pop("backbone_pretrained", None)
    runner = Runner.from_cfg(cfg)
    last = last_checkpoint(cfg.work_dir)
    if cfg.get("load_from"):
        runner.load_checkpoint(cfg.load_from)
    elif last is not None:
        checkpoint = read_checkpoint(last)
        average = checkpoint.get("ema_state_dict")  # holds the weights under training, see WarmupEMAHook
        state = (
            {k.removeprefix("module."): v for k, v in average.items() if k != "steps"} if average else checkpoint["state_dict"]
        )
        load_into(runner.bare_model, state, source=str(last))
        say(f"weights under training of {shown(last)}")
    else:
        say(f"no checkpoint in {shown(cfg.work_dir)}: the weights are random")
    try:
        losses = replay(runner.bare_model, path)
    except NonFiniteError as error:
        say(f"again: {error}")
        return 1
    say("\n".join(f"{name:<24} {value:.6g}" for name, value in losses.items()))
    return 0
