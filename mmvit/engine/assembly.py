"""A config, data, a backbone and the wishes of the command line become one runnable config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmvit.engine.arguments import accepted_arguments
from mmvit.engine.config import apply_options, check_config
from mmvit.engine.log import say
from mmvit.errors import UserError, did_you_mean
from mmvit.registry import TRANSFORMS

COCO = Path("data/coco")
SHAPES = Path("data/shapes")


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
    val_interval: int | None = None,
    no_augment: bool = False,
    size: int | None = None,
    lr: float | None = None,
    workers: int | None = None,
    options: Sequence[str] = (),
    training: bool = True,
) -> Config:
    """A copy of `cfg` that is complete: data found, classes counted, device and precision chosen, every key checked.

    Args:
        data: ``coco`` (data/coco, the default of the recipes), ``shapes`` (synthetic, made on the spot) or a folder or json
            file with COCO-style annotations. Files, classes and ``model.num_classes`` follow from it.
        backbone: a name of `mmvit.list_backbones()` in place of the recipe's.
        work_dir: where checkpoints and logs go; ``work_dirs/<config>`` by default.
        seed: of the run; drawn when None (and stored in the checkpoint).
        amp: ``bf16``, ``fp16`` or ``none`` in place of the recipe's precision. A recipe in fp16 runs in float32 on the CPU.
        resume: True for the last checkpoint of the work dir, or the path of one.
        load_from: a checkpoint, or a published model's name, whose weights training starts from.
        new_classes: with `load_from`: layers whose shape depends on the classes start afresh.
        auto_scale_lr: scale the learning rate with the batch size.
        batch_size, epochs, size, lr, workers: short forms of config keys; `size` is the side of the square input.
        val_interval: epochs between two validations, and between two checkpoints.
        no_augment: leave out random transforms and multi-scale, for instance to see whether a model fits a few pictures.
        options: ``key.key=value`` changes (`apply_options`), applied last but for the data.
        training: False needs the validation data only.
    """
    cfg = cfg.copy() if isinstance(cfg, Config) else Config(cfg)
    check_config(cfg)
    device = _device(device)
    if batch_size is not None:
        _positive("--batch-size", batch_size)
        cfg.train_dataloader.batch_size = batch_size
    if epochs is not None:
        _positive("--epochs", epochs)
        _set_epochs(cfg, epochs)
    if val_interval is not None:
        _positive("--val-interval", val_interval)
        cfg.merge_from_dict({"train_cfg.val_interval": val_interval, "default_hooks.checkpoint.interval": val_interval})
    if no_augment:
        _drop_augmentation(cfg)
    if size is not None:
        _set_size(cfg, size)
    if lr is not None:
        _set_lr(cfg, lr)
    _set_workers(cfg, workers)
    if backbone is not None:
        _set_backbone(cfg, backbone)
    apply_options(cfg, options)
    _set_data(cfg, data, training)
    if training and batch_size is None:
        _shrink_batch(cfg)
    _set_precision(cfg, amp, device)
    if not auto_scale_lr and cfg.get("auto_scale_lr"):
        cfg.auto_scale_lr.enable = False
    name = Path(cfg.filename).stem if cfg.filename else "run"
    cfg.work_dir = str(work_dir or cfg.get("work_dir") or Path("work_dirs") / name)
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


def _set_epochs(cfg: Config, epochs: int) -> None:
    """Train `epochs` epochs; the final epochs without strong augmentation stay as many as they were, or go."""
    stop = cfg.get("default_hooks", {}).get("stop_augmentation")
    if stop:
        last = cfg.train_cfg.max_epochs - stop.epoch
        stop.epoch = max(0, epochs - last) if epochs > 2 * last else epochs
    cfg.train_cfg.max_epochs = epochs


def _drop_augmentation(cfg: Config) -> None:
    """Train on the pictures as they are: no transform that happens with a probability, no multi-scale."""
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [step for step in dataset.pipeline if "p" not in (accepted_arguments(TRANSFORMS.get(step.type)) or ())]
    if cfg.model.get("data_preprocessor", {}).get("multi_scale"):
        cfg.model.data_preprocessor.multi_scale = None
    cfg.default_hooks.pop("stop_augmentation", None)


def _set_size(cfg: Config, size: int) -> None:
    """Square input of side `size`; multi-scale sides keep their ratio to it."""
    if size < 32 or size % 32:
        raise UserError(f"--size {size}: the side must be a multiple of 32, 32 or more.")
    before = None
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for step in cfg.get(loader, {}).get("dataset", {}).get("pipeline", ()):
            if step.get("type") == "Resize":
                before = step.size if isinstance(step.size, int) else step.size[0]
                step.size = (size, size)
    preprocessor = cfg.model.get("data_preprocessor", {})
    if before and preprocessor.get("multi_scale"):
        preprocessor.multi_scale = [max(32, int(side * size / before / 32 + 0.5) * 32) for side in preprocessor.multi_scale]


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
    from mmvit.data import read_coco

    loader = cfg.train_dataloader
    images = len(read_coco(loader.dataset.ann_file).image_ids)
    if loader.get("drop_last") and 0 < images < loader.batch_size:
        say(f"batch size {loader.batch_size} of the recipe becomes {images}: there are {images} training images")
        loader.batch_size = images


def _set_backbone(cfg: Config, backbone: str) -> None:
    from mmvit.backbones import list_backbones

    names = list_backbones()
    if backbone not in names:
        raise UserError(
            f"There is no backbone {backbone!r}.{did_you_mean(backbone, names)} `mmvit.list_backbones()` lists all of them."
        )
    cfg.model.backbone = backbone


def _set_precision(cfg: Config, amp: str | None, device: str) -> None:
    if not cfg.get("optim_wrapper"):
        return
    if amp is not None:
        cfg.optim_wrapper.dtype = None if amp == "none" else amp
    elif cfg.optim_wrapper.get("dtype") and not device.startswith("cuda"):
        cfg.optim_wrapper.dtype = None


# -- data ------------------------------------------------------------------------------------------


def _set_data(cfg: Config, data: str | Path | None, training: bool) -> None:
    """Point the loaders and the metric at the data; classes and the model's class count come from the training file."""
    if data is None:  # what the config was written for
        ann_file = Path(cfg.train_dataloader.dataset.get("ann_file", ""))
        data = {SHAPES: "shapes", COCO: "coco"}.get(next((root for root in (SHAPES, COCO) if root in ann_file.parents), None))
    if data is not None:
        files = _find_data(data, training)
        for loader, json_file, img_dir in (
            ("train_dataloader", files.train_json, files.img_dirs[0]),
            ("val_dataloader", files.val_json, files.img_dirs[1]),
            ("test_dataloader", files.val_json, files.img_dirs[1]),
        ):
            if cfg.get(loader):
                cfg[loader].dataset.ann_file, cfg[loader].dataset.img_dir = str(json_file), str(img_dir)
        for evaluator in ("val_evaluator", "test_evaluator"):
            if cfg.get(evaluator):
                cfg[evaluator].ann_file = str(files.val_json)
    _set_classes(cfg)


def _find_data(data: str | Path, training: bool) -> Any:
    from mmvit.data import ensure_shapes, find_coco_json

    if str(data) == "shapes":
        return find_coco_json(ensure_shapes(SHAPES))
    if str(data) == "coco":
        splits = ("train2017", "val2017") if training else ("val2017",)
        wanted = [COCO / place for split in splits for place in (f"annotations/instances_{split}.json", split)]
        missing = [str(path) for path in wanted if not path.exists()]
        if missing:
            raise UserError(
                f"COCO is not complete: {', '.join(missing)} missing. Unpack train2017.zip, val2017.zip and "
                f"annotations_trainval2017.zip of https://cocodataset.org/#download into {COCO}/, or make {COCO} a link to "
                "the folder that has them. --data shapes trains on synthetic data at once, --data PATH on your own."
            )
    return find_coco_json(COCO if str(data) == "coco" else data)


def _set_classes(cfg: Config) -> None:
    """Fix the class names in all datasets, and the model's class count, to those of the training annotations."""
    from mmvit.data import read_coco

    dataset = cfg.train_dataloader.dataset
    classes = tuple(dataset.get("classes") or read_coco(dataset.ann_file).classes)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if cfg.get(loader):
            cfg[loader].dataset.classes = classes
    stated = cfg.model.get("num_classes")
    if stated is not None and stated != len(classes):
        raise UserError(
            f"model.num_classes={stated} in the config, but {dataset.ann_file} has {len(classes)} classes "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}). Leave model.num_classes out: the data decides."
        )
    cfg.model.num_classes = len(classes)
