"""Pointing a config at data: files are found, classes counted, masks looked at before training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmvit.engine.log import say
from mmvit.errors import UserError
from mmvit.registry import DATASETS

COCO = Path("data/coco")
SHAPES = Path("data/shapes")
SEMANTIC_SETS = ("ade20k", "cityscapes")
PANOPTIC_SETS = ("coco", "ade20k", "cityscapes", "shapes")
PANOPTIC_EXAMPLE = "configs/mask2former_coco_panoptic.py"
EVALUATORS = ("val_evaluator", "test_evaluator")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def is_semantic(cfg: Config) -> bool:
    """Whether a config is for semantic segmentation data."""
    return cfg.train_dataloader.dataset.get("type") == "SemanticDataset"


def is_panoptic(cfg: Config) -> bool:
    """Whether a config is for panoptic data. One that is for neither is for COCO-style detection data."""
    return cfg.train_dataloader.dataset.get("type") == "PanopticDataset"


def metrics(cfg: Config) -> Iterator[Any]:
    """The settings of each metric."""
    for key in EVALUATORS:
        found = cfg.get(key) or ()
        yield from found if isinstance(found, (list, tuple)) else (found,)


def datasets(cfg: Config) -> Iterator[tuple[str, Any]]:
    """The split (``train`` or ``val``) and the settings of each loader's dataset."""
    for loader in LOADERS:
        if cfg.get(loader):
            yield "train" if loader.startswith("train") else "val", cfg[loader].dataset


def data_name(cfg: Config) -> str:
    """What the evaluated data is called: the name of a known data set, else its path."""
    dataset = cfg.test_dataloader.dataset
    if is_semantic(cfg) or is_panoptic(cfg):
        return str(cfg.get("data") or dataset.get("ann_file") or dataset.get("img_dir", ""))
    return known_coco(cfg) or dataset.ann_file


def set_data(
    cfg: Config,
    data: str | Path | None,
    training: bool,
    mask_format: str | None = None,
    ignore_index: int | None = None,
) -> None:
    """Point loaders and metrics at `data`, None for what the config was written for; the class count follows from it.

    Args:
        data: a name (``coco``, ``ade20k``, ``cityscapes``, ``shapes``), a folder, or a COCO-style json.
        training: False needs the validation data only.
        mask_format, ignore_index: what the values of semantic masks mean, see `mmvit.data.MaskReader`.

    Raises:
        UserError: nothing is there, or it is of another kind than the config needs.
    """
    if is_semantic(cfg):
        _set_semantic(cfg, data, training, mask_format, ignore_index)
    else:
        if mask_format is not None or ignore_index is not None:
            task = "reads panoptic maps" if is_panoptic(cfg) else "detects objects"
            raise UserError(f"--mask-format and --ignore-index are for semantic masks; this config {task}.")
        (_set_panoptic if is_panoptic(cfg) else _set_detection)(cfg, data, training)
    _set_classes(cfg)


def count_images(dataset: dict) -> int:
    """Number of pictures of a dataset, given its settings."""
    if dataset.get("type") == "CocoDetection":
        from mmvit.data import read_coco

        return len(read_coco(dataset["ann_file"]).image_ids)
    return len(DATASETS.build({key: value for key, value in dataset.items() if key != "pipeline"}))


def _set_classes(cfg: Config) -> None:
    """Give all datasets the class names of the training data, and the model their number; of panoptic data also which are
    things.
    """
    dataset = cfg.train_dataloader.dataset
    if is_panoptic(cfg):
        known = _panoptic_metainfo(dataset)
        classes, cfg.model.things = known["classes"], known["things"]
    else:
        classes = tuple(dataset.get("classes") or _coco_classes(dataset.ann_file))
    for _, other in datasets(cfg):
        other.classes = classes
    stated = cfg.model.get("num_classes")
    if stated is not None and stated != len(classes):
        raise UserError(
            f"model.num_classes={stated} in the config, but {dataset.get('ann_file') or dataset.mask_dir} has {len(classes)} "
            f"classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}). Leave model.num_classes out: the data "
            "decides."
        )
    cfg.model.num_classes = len(classes)


# -- detection -------------------------------------------------------------------------------------


def _coco_classes(ann_file: str) -> tuple[str, ...]:
    from mmvit.data import read_coco

    return read_coco(ann_file).classes


def known_coco(cfg: Config) -> str | None:
    """The name of the data set that a detection config is written for."""
    ann_file = Path(cfg.train_dataloader.dataset.get("ann_file", ""))
    return {SHAPES: "shapes", COCO: "coco"}.get(next((root for root in (SHAPES, COCO) if root in ann_file.parents), None))


def _set_detection(cfg: Config, data: str | Path | None, training: bool) -> None:
    data = (cfg.get("data") or known_coco(cfg)) if data is None else data
    if data is None:
        return
    files = _find_detection(data, training)
    for split, dataset in datasets(cfg):
        train = split == "train"
        dataset.ann_file = str(files.train_json if train else files.val_json)
        dataset.img_dir = str(files.img_dirs[0 if train else 1])
    for metric in metrics(cfg):
        metric.ann_file = str(files.val_json)


def _find_detection(data: str | Path, training: bool) -> Any:
    from mmvit.data import ensure_shapes, find_coco_json, find_panoptic, find_semantic

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
    if str(data) in SEMANTIC_SETS:
        raise _wrong_kind(data, "masks for semantic segmentation", "detects objects", "configs/upernet_ade20k.py")
    try:
        return find_coco_json(COCO if str(data) == "coco" else data)
    except UserError:
        if _found(find_semantic, data):
            raise _wrong_kind(data, "masks for semantic segmentation", "detects objects", "configs/upernet_ade20k.py") from None
        if _found(find_panoptic, data):
            raise _wrong_kind(data, "panoptic maps", "detects objects", PANOPTIC_EXAMPLE) from None
        raise


def _wrong_kind(data: str | Path, has: str, needs: str, example: str) -> UserError:
    return UserError(f"--data {data}: this is data with {has}, but the config {needs}. Take a config like {example} for it.")


def _found(find: Any, data: str | Path) -> bool:
    """Whether `find` takes `data` for its own."""
    try:
        find(data)
    except UserError:
        return False
    return True


# -- semantic segmentation -------------------------------------------------------------------------


def _set_semantic(
    cfg: Config, data: str | Path | None, training: bool, mask_format: str | None, ignore_index: int | None
) -> None:
    train = cfg.train_dataloader.dataset
    if data is None and "mask_dir" in train:  # a config of one's own, or one that was assembled before
        changes = dict(mask_format=mask_format, ignore_index=ignore_index)
        for _, dataset in datasets(cfg):
            dataset.update({key: value for key, value in changes.items() if value is not None})
    else:
        data = cfg.get("data") if data is None else data
        if data is None:
            raise UserError("The config does not say where its pictures and masks are: give --data ade20k, cityscapes or PATH.")
        files = _find_semantic(data, mask_format, ignore_index)
        cfg.data = str(data)
        for split, dataset in datasets(cfg):
            dataset.update(files.dataset_args(split))
    if training and cfg.get("data") not in (*SEMANTIC_SETS, "shapes"):
        _check_masks(cfg)


def _find_semantic(data: str | Path, mask_format: str | None, ignore_index: int | None) -> Any:
    from mmvit.data import find_coco_json, find_panoptic, find_semantic

    is_json = Path(data).suffix == ".json" and Path(data).is_file()
    if str(data) == "coco" or is_json:
        raise _wrong_kind(data, "boxes (COCO-style)", "needs a mask for each picture", "configs/rtdetr_r50.py")
    try:
        return find_semantic(data, mask_format=mask_format, ignore_index=ignore_index)
    except UserError:
        if str(data) in (*SEMANTIC_SETS, "shapes") or not Path(data).is_dir():
            raise
        if _found(find_panoptic, data):
            raise _wrong_kind(data, "panoptic maps", "needs semantic masks", PANOPTIC_EXAMPLE) from None
        if _found(find_coco_json, data):
            raise _wrong_kind(data, "boxes (COCO-style)", "needs a mask for each picture", "configs/rtdetr_r50.py") from None
        raise


def _check_masks(cfg: Config) -> None:
    """Look at the masks of a user's own data before training begins."""
    from mmvit.data import check_masks

    unlike = {str(sorted(_source(dataset).items(), key=str)): _source(dataset) for _, dataset in datasets(cfg)}
    check_masks(*(DATASETS.build(source) for source in unlike.values()), progress=os.environ.get("RANK", "0") == "0")


def _source(dataset: dict) -> dict:
    return {key: value for key, value in dataset.items() if key not in ("pipeline", "test_mode")}


# -- panoptic segmentation -------------------------------------------------------------------------


def _panoptic_metainfo(dataset: dict) -> dict:
    from mmvit.data.panoptic_dataset import describe, select_categories
    from mmvit.data.panoptic_files import read_panoptic

    return describe(select_categories(read_panoptic(dataset["ann_file"], dataset.get("png_dir")), dataset.get("classes")))


def _set_panoptic(cfg: Config, data: str | Path | None, training: bool) -> None:
    if data is None and "ann_file" in cfg.train_dataloader.dataset:  # a config of one's own, or assembled before
        return
    data = cfg.get("data") if data is None else data
    if data is None:
        raise UserError("The config does not say where its data are: give --data coco, ade20k, cityscapes, shapes or PATH.")
    files = _find_panoptic(data, training)
    cfg.data = str(data)
    for split, dataset in datasets(cfg):
        dataset.update(files.dataset_args(split))
    left_out: set[str] = set()
    for key in EVALUATORS:
        if cfg.get(key):
            cfg[key] = _panoptic_metrics(cfg[key], files, left_out)
    if left_out:
        say(f"left out of the evaluation: {', '.join(sorted(left_out))}; {files.root} has no files that it could read")
    if training and str(data) not in PANOPTIC_SETS:
        for dataset in {dataset.ann_file: dataset for _, dataset in datasets(cfg)}.values():
            DATASETS.build(_source(dataset)).check()


def _panoptic_metrics(evaluator: Any, files: Any, left_out: set[str]) -> Any:
    """The metrics with the files that they read; those for which the data has none are left out."""
    found = []
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if metric.type == "PanopticMetric":
            metric.update(ann_file=str(files.val.ann_file), png_dir=str(files.val.png_dir))
        elif metric.type == "CocoBoxMetric" and files.val.instances is not None:
            metric.ann_file = str(files.val.instances)
        elif metric.type == "CityscapesInstanceMetric" and (files.root / "gtFine" / "val").is_dir():
            metric.gt_dir = str(files.root / "gtFine" / "val")
        elif metric.type in ("CocoBoxMetric", "CityscapesInstanceMetric"):
            left_out.add(metric.type)
            continue
        found.append(metric)
    if not found:
        raise UserError(f"{files.root}: has no files that {', '.join(sorted(left_out))} could read. Evaluate by PanopticMetric")
    return found if isinstance(evaluator, (list, tuple)) else found[0]


def _find_panoptic(data: str | Path, training: bool) -> Any:
    from mmvit.data import find_coco_json, find_panoptic, find_semantic

    try:
        return find_panoptic(data, training=training)
    except UserError:
        if str(data) in PANOPTIC_SETS or not Path(data).is_dir():
            raise
        if _found(find_semantic, data):
            raise _wrong_kind(data, "semantic masks", "needs panoptic maps", "configs/mask2former_ade20k.py") from None
        if _found(find_coco_json, data):
            raise _wrong_kind(data, "boxes (COCO-style)", "needs panoptic maps", "configs/rtdetr_r50.py") from None
        raise
