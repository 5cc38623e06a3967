"""A config, data, a backbone and the wishes of the command line become one runnable config."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from mmvit.engine.config import apply_options, check_config
from mmvit.engine.datasets import count_images, metrics, set_data
from mmvit.engine.log import say
from mmvit.engine.pipelines import drop_augmentation, set_size, set_slide, set_tta
from mmvit.engine.recipes import apply_backbone_recipe, set_backbone
from mmvit.engine.schedule import scale_schedule
from mmvit.errors import UserError


def assemble(
    cfg: Config,
    data: str | Path | None = None,
    backbone: str | None = None,
    work_dir: str | Path | None = None,
    seed: int | None = None,
    amp: str | None = None,
    device: str | None = None,
    launcher: str = "none",
    resume: bool | str = False,
    load_from: str | None = None,
    new_classes: bool = False,
    compile: bool = False,
    auto_scale_lr: bool = True,
    batch_size: int | None = None,
    epochs: int | None = None,
    iters: int | None = None,
    val_interval: int | None = None,
    no_augment: bool = False,
    size: int | None = None,
    lr: float | None = None,
    workers: int | None = None,
    ema: float | bool | None = None,
    mask_format: str | None = None,
    ignore_index: int | None = None,
    slide: bool = False,
    tta: bool = False,
    options: Sequence[str] = (),
    training: bool = True,
) -> Config:
    """A copy of `cfg` that is complete: data found, classes counted, device and precision chosen, every key checked.

    Args:
        data: for detection ``coco`` (data/coco), ``shapes`` (synthetic, made on the spot) or a folder or json file with
            COCO-style annotations; for segmentation ``ade20k``, ``cityscapes`` (prepared under data/), ``shapes`` or a folder
            with pictures, masks and a names file; for panoptic segmentation also ``coco``, or a folder with a panoptic json,
            its maps and pictures. The recipe's data if None. Files, classes and ``model.num_classes`` follow.
        backbone: a name of `mmvit.list_backbones()` in place of the recipe's; what the recipe says of it
            (``backbone_recipes``) is applied.
        work_dir: where checkpoints and logs go; ``work_dirs/<config>`` by default.
        seed: of the run; drawn when None (and stored in the checkpoint).
        amp: ``bf16``, ``fp16`` or ``none`` in place of the recipe's precision. A recipe in fp16 runs in float32 on the CPU.
        resume: True for the last checkpoint of the work dir, or the path of one.
        load_from: a checkpoint, or a published model's name, whose weights training starts from.
        new_classes: with `load_from`: layers whose shape depends on the classes start afresh.
        auto_scale_lr: scale the learning rate with the batch size.
        batch_size, epochs, lr, workers: short forms of config keys; of a recipe that counts iterations, epochs are passes over
            the data.
        iters: length of a recipe that counts iterations.
        size: side of the square input; of segmentation the short side of the crops, with the other sizes in proportion.
        val_interval: epochs, or iterations, between two validations, and between two checkpoints.
        no_augment: leave out random transforms, crops and multi-scale, for instance to see whether a model fits a few
            pictures.
        ema: evaluate an average of the weights: True, or its decay.
        mask_format, ignore_index: what the values of semantic masks mean, see `mmvit.data.MaskReader`.
        slide, tta: evaluate by sliding windows; over several scales and mirror images.
        options: ``key.key=value`` changes (`apply_options`), applied last but for the data.
        training: False needs the validation data only.
    """
    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(cfg)
    check_config(cfg)
    device = _device(device)
    if backbone is not None:
        set_backbone(cfg, backbone)
    recipe_size = apply_backbone_recipe(cfg)
    if batch_size is not None:
        _positive("--batch-size", batch_size)
        cfg.train_dataloader.batch_size = batch_size
    if epochs is not None and iters is not None:
        raise UserError("--epochs and --iters exclude each other: both say how long to train.")
    if epochs is not None:
        _positive("--epochs", epochs)
        _set_epochs(cfg, epochs)
    if iters is not None:
        _positive("--iters", iters)
        _set_iters(cfg, iters)
    if val_interval is not None:
        _positive("--val-interval", val_interval)
        cfg.merge_from_dict({"train_cfg.val_interval": val_interval, "default_hooks.checkpoint.interval": val_interval})
    if size is not None or recipe_size is not None:
        set_size(cfg, recipe_size if size is None else size)
    if no_augment:
        drop_augmentation(cfg)
    if lr is not None:
        _set_lr(cfg, lr)
    if ema is not None and ema is not False:
        _set_ema(cfg, ema)
    _set_workers(cfg, workers)
    apply_options(cfg, options)
    if slide:
        set_slide(cfg)
    if tta:
        set_tta(cfg)
    set_data(cfg, data, training, mask_format, ignore_index)
    if training and batch_size is None:
        _shrink_batch(cfg)
    _set_precision(cfg, amp, device)
    if not auto_scale_lr and cfg.get("auto_scale_lr"):
        cfg.auto_scale_lr.enable = False
    name = Path(cfg.filename).stem if cfg.filename else "run"
    cfg.work_dir = str(work_dir or cfg.get("work_dir") or Path("work_dirs") / name)
    _write_confusion(cfg)
    cfg.device, cfg.launcher = device, launcher
    cfg.randomness = cfg.get("randomness") or {}
    cfg.randomness.seed = seed if seed is not None else cfg.randomness.get("seed")
    cfg.env_cfg = cfg.get("env_cfg") or {}
    cfg.env_cfg.dist_cfg = dict(cfg.env_cfg.get("dist_cfg") or {}, backend="nccl" if device.startswith("cuda") else "gloo")
    if compile:
        cfg.compile = True
    if resume and load_from:
        raise UserError("--resume and --load-from exclude each other: resuming restores the weights of its checkpoint.")
    cfg.resume = bool(resume)
    if isinstance(resume, (str, Path)):
        cfg.load_from = _existing(resume)
    elif load_from:
        cfg.load_from = _weights(load_from)
        cfg.new_classes = new_classes
    check_config(cfg)
    return cfg


def _positive(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option} {value}: it must be 1 or more.")


def _device(wish: str | None) -> str:
    available = torch.cuda.is_available()
    device = wish or ("cuda" if available else "cpu")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"--device {device!r} is not a device: use cpu, cuda or cuda:N.") from None
    if kind == "cuda" and not available:
        raise UserError("--device cuda: PyTorch finds no CUDA GPU. Use --device cpu, or see `mmvit doctor`.")
    return device


def _existing(path: str | Path) -> str:
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint {path}.")
    return str(path)


def _weights(name: str) -> str:
    if Path(name).is_file():
        return str(name)
    from mmvit.weights import resolve

    return str(resolve(name))


# -- short forms -----------------------------------------------------------------------------------


def _counts_iterations(cfg: Config) -> bool:
    return cfg.train_cfg.get("type") == "IterTrainLoop"


def _set_epochs(cfg: Config, epochs: int) -> None:
    """Train `epochs` passes over the data; steps of the learning rate move along, the final epochs without strong augmentation
    stay as many as they were, or go.
    """
    if _counts_iterations(cfg):
        cfg.train_cfg.update(max_iters=None, max_epochs=epochs, val_interval=None)
        cfg.get("default_hooks", {}).get("checkpoint", {}).pop("interval", None)
        return
    stop = cfg.get("default_hooks", {}).get("stop_augmentation")
    if stop:
        last = cfg.train_cfg.max_epochs - stop.epoch
        stop.epoch = max(0, epochs - last) if epochs > 2 * last else epochs
    scale_schedule(cfg.get("param_scheduler") or [], cfg.train_cfg.max_epochs, epochs, by_epoch=True)
    cfg.train_cfg.max_epochs = epochs


def _set_iters(cfg: Config, iters: int) -> None:
    """Train `iters` iterations; what the recipe states in iterations shrinks or grows along."""
    if not _counts_iterations(cfg):
        raise UserError(f"--iters {iters}: this recipe counts epochs (passes over the data). Use --epochs N.")
    before = cfg.train_cfg.get("max_iters")
    cfg.train_cfg.update(max_iters=iters, max_epochs=None)
    if not before:
        return
    for settings in (cfg.train_cfg, cfg.get("default_hooks", {}).get("checkpoint", {})):
        for key in ("val_interval", "interval"):
            if settings.get(key):
                settings[key] = max(1, settings[key] * iters // before)
    scale_schedule(cfg.get("param_scheduler") or [], before, iters)


def _set_ema(cfg: Config, ema: float | bool) -> None:
    """Average the weights; `ema`: True for the recipe's decay, or `WarmupEMA`'s, else the decay."""
    hooks = cfg.setdefault("default_hooks", {})
    hook = dict(hooks.get("ema") or dict(type="WarmupEMAHook"))
    if ema is not True:
        if not 0 < ema < 1:
            raise UserError(f"--ema {ema}: the decay must lie between 0 and 1, for instance 0.9999.")
        hook["decay"] = ema
    hooks["ema"] = hook


def _set_lr(cfg: Config, lr: float) -> None:
    """Base learning rate `lr`; learning rates of parameter rules keep their ratio to it."""
    if not lr > 0:
        raise UserError(f"--lr {lr}: it must be above 0.")
    ratio = lr / cfg.optim_wrapper.optimizer.lr
    cfg.optim_wrapper.optimizer.lr = lr
    for rule in (cfg.optim_wrapper.get("paramwise_cfg") or {}).get("rules", ()):
        if "lr" in rule:
            rule.lr = rule.lr * ratio


def _set_workers(cfg: Config, workers: int | None) -> None:
    """`workers` processes for each loader; None: the recipe's number, but no more than there are cores."""
    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers}: it must be 0 or more.")
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if cfg.get(loader):
            count = min(cfg[loader].get("num_workers", 0), os.cpu_count() or 1) if workers is None else workers
            cfg[loader].num_workers = count
            cfg[loader].persistent_workers = count > 0 and cfg[loader].get("persistent_workers", False)


def _shrink_batch(cfg: Config) -> None:
    """A recipe's batch that is larger than the whole training set becomes the training set."""
    loader = cfg.train_dataloader
    if not loader.get("drop_last"):
        return
    images = count_images(loader.dataset)
    if 0 < images < loader.batch_size:
        say(f"batch size {loader.batch_size} of the recipe becomes {images}: there are {images} training images")
        loader.batch_size = images


def _write_confusion(cfg: Config) -> None:
    """Semantic metrics draw their confusion matrix into the work dir."""
    for metric in metrics(cfg):
        if metric.type == "SemanticMetric" and metric.get("out_dir") is None:
            metric.out_dir = cfg.work_dir


def _set_precision(cfg: Config, amp: str | None, device: str) -> None:
    if not cfg.get("optim_wrapper"):
        return
    if amp is not None:
        cfg.optim_wrapper.dtype = None if amp == "none" else amp
    elif cfg.optim_wrapper.get("dtype") and not device.startswith("cuda"):
        cfg.optim_wrapper.dtype = None
