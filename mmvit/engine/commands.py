"""The commands ``train`` and ``test``. Only argparse is imported here; the engine when a command runs."""

from __future__ import annotations

import argparse
import os
from typing import Any


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a config file, e.g. configs/rtdetr_r50.py")
    parser.add_argument(
        "--data",
        metavar="{coco,ade20k,cityscapes,shapes,PATH}",
        help="coco, ade20k, cityscapes (under data/), shapes (synthetic, made on the spot), or your own: a folder or json of "
        "COCO-style annotations, a folder of pictures and masks with a names file, a folder of pictures and panoptic maps with "
        "their json; the config's data by default",
    )
    parser.add_argument("--backbone", metavar="NAME", help="another backbone; mmvit.list_backbones() lists them")
    parser.add_argument("--work-dir", metavar="DIR", help="where results go (work_dirs/CONFIG)")
    parser.add_argument("--size", type=int, metavar="S", help="side of the square input, or of the crops of segmentation")
    parser.add_argument("--mask-format", metavar="FORMAT", help="what masks hold: index, reduce_zero, binary or rgb")
    parser.add_argument("--ignore-index", type=int, metavar="V", help="value of masks that stands for no class (255)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that load data, per training process")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU if there is one)")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how processes were started, e.g. torchrun ... --launcher pytorch",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change config keys, e.g. optim_wrapper.clip_grad.max_norm=0.5",
    )
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``train``."""
    _add_common(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per process and step")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs (passes over the data) to train")
    parser.add_argument("--iters", type=int, metavar="N", help="iterations to train, for recipes that count them")
    parser.add_argument(
        "--val-interval",
        type=int,
        metavar="N",
        help="validate and save every N epochs (iterations where the recipe counts them)",
    )
    parser.add_argument(
        "--no-augment", action="store_true", help="train on the pictures as they are: no random transform, one size"
    )
    parser.add_argument(
        "--ema",
        nargs="?",
        type=float,
        const=True,
        metavar="DECAY",
        help="evaluate and save an average of the weights (decay 0.9999, or the recipe's)",
    )
    parser.add_argument(
        "--lr", type=float, help="learning rate at the recipe's batch size; the other rates keep their ratio to it"
    )
    parser.add_argument(
        "--no-auto-scale-lr",
        dest="auto_scale_lr",
        action="store_false",
        help="do not scale the learning rate with the batch size",
    )
    parser.add_argument("--auto-scale-lr", dest="auto_scale_lr", action="store_true", help="scale it (the default)")
    parser.add_argument("--amp", choices=["bf16", "fp16", "none"], help="mixed precision; the recipe's by default")
    parser.add_argument("--compile", action="store_true", help="compile backbone, neck and head with torch.compile")
    parser.add_argument("--seed", type=int, help="of data order, augmentation and initial weights")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CKPT",
        help="continue exactly from a checkpoint, the last one of the work dir by default",
    )
    parser.add_argument(
        "--load-from", metavar="CKPT", help="start from the weights of a file or a published model (rtdetr_r50)"
    )
    parser.add_argument(
        "--new-classes", action="store_true", help="with --load-from: train the class layers anew for other classes"
    )
    parser.add_argument("--replay", metavar="FILE", help="run a batch that was saved because a step was not finite, and stop")


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``test``."""
    _add_common(parser)
    parser.add_argument("checkpoint", help="a checkpoint file, or the name of published weights (rtdetr_r50)")
    parser.add_argument("--out", metavar="FILE", help="where the scores go (metrics.json in the work dir)")
    parser.add_argument("--eval-layers", type=int, metavar="N", help="use the first N decoder layers only")
    parser.add_argument("--slide", action="store_true", help="segmentation: evaluate by sliding windows")
    parser.add_argument("--tta", action="store_true", help="segmentation: average over six scales and their mirror images")
    parser.add_argument("--deploy", action="store_true", help="fold normalisations and branches into convolutions first")


def _changes(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    common = ("data", "backbone", "work_dir", "size", "mask_format", "ignore_index", "workers", "device", "launcher")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return dict({name: getattr(args, name) for name in (*common, *names)}, options=args.cfg_options)


def run_train(args: argparse.Namespace) -> int:
    """Train a model by a config on COCO, ADE20K or Cityscapes, on the synthetic shapes or on data of your own."""
    from mmvit.engine.hooks import Interrupted
    from mmvit.engine.log import say, shown
    from mmvit.engine.run import leave_group, replay_file, train

    changes = _changes(
        args,
        "batch_size",
        "epochs",
        "iters",
        "val_interval",
        "no_augment",
        "ema",
        "lr",
        "auto_scale_lr",
        "amp",
        "compile",
        "seed",
        "resume",
        "load_from",
        "new_classes",
    )
    if args.replay:
        return replay_file(args.config, args.replay, **changes)
    status = 0
    try:
        train(args.config, **changes)
    except Interrupted as stop:
        status = int(stop.code)
        say(
            f"stopped on signal {stop.signum}; state saved to {shown(stop.checkpoint)}.\n"
            "The same command with --resume goes on from there."
        )
    leave_group()
    return status


def run_test(args: argparse.Namespace) -> int:
    """Evaluate a checkpoint: box AP or mIoU, parameters, FLOPs and latency."""
    from mmvit.engine.run import leave_group, test

    changes = _changes(args, "slide", "tta")
    test(args.config, args.checkpoint, out=args.out, eval_layers=args.eval_layers, deploy=args.deploy, **changes)
    leave_group()
    return 0
