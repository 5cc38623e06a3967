"""Pointing a config at data: files are found, classes counted, masks looked at before training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmvit.errors import UserError
from mmvit.registry import DATASETS

COCO = Path("data/coco")
SHAPES = Path("data/shapes")
SEMANTIC_SETS = ("ade20k", "cityscapes")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def is_semantic(cfg: Config) -> bool:
    """Whether a config is for semantic segmentation data, else for COCO-style detection data."""
    return cfg.train_dataloader.dataset.get("type") == "SemanticDataset"


def datasets(cfg: Config) -> Iterator[tuple[str, Any]]:
    """The split (``train`` or ``val``) and the settings of each loader's dataset."""
    for loader in LOADERS:
        if cfg.get(loader):
            yield "train" if loader.startswith("train") else "val", cfg[loader].dataset


def data_name(cfg: Config) -> str:
    """What the evaluated data is called: the name of a known data set, else its path."""
    dataset = cfg.test_dataloader.dataset
    return str(cfg.get("data") or dataset.get("img_dir", "")) if is_semantic(cfg) else known_coco(cfg) or dataset.ann_file


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
            raise UserError("--mask-format and --ignore-index are for masks; this config detects objects.")
        _set_detection(cfg, data, training)
    _set_classes(cfg)


def count_images(dataset: dict) -> int:
    """Number of pictures of a dataset, given its settings."""
    if "ann_file" in dataset:
        from mmvit.data import read_coco

        return len(read_coco(dataset["ann_file"]).image_ids)
    return len(DATASETS.build({key: value for key, value in dataset.items() if key != "pipeline"}))


def _set_classes(cfg: Config) -> None:
    """Give all datasets the class names of the training data, and the model their number."""
    dataset = cfg.train_dataloader.dataset
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
    for evaluator in ("val_evaluator", "test_evaluator"):
        if cfg.get(evaluator):
            cfg[evaluator].ann_file = str(files.val_json)


def _find_detection(data: str | Path, training: bool) -> Any:
    from mmvit.data import ensure_shapes, find_coco_json, find_semantic

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
    from mmvit.data import find_coco_json, find_semantic

    is_json = Path(data).suffix == ".json" and Path(data).is_file()
    if str(data) == "coco" or is_json:
        raise _wrong_kind(data, "boxes (COCO-style)", "needs a mask for each picture", "configs/rtdetr_r50.py")
    try:
        return find_semantic(data, mask_format=mask_format, ignore_index=ignore_index)
    except UserError:
        if str(data) not in (*SEMANTIC_SETS, "shapes") and Path(data).is_dir() and _found(find_coco_json, data):
            raise _wrong_kind(data, "boxes (COCO-style)", "needs a mask for each picture", "configs/rtdetr_r50.py") from None
        raise


def _check_masks(cfg: Config) -> None:
    """Look at the masks of a user's own data before training begins."""
    from mmvit.data import check_masks

    unlike = {str(sorted(_source(dataset).items(), key=str)): _source(dataset) for _, dataset in datasets(cfg)}
    check_masks(*(DATASETS.build(source) for source in unlike.values()), progress=os.environ.get("RANK", "0") == "0")


def _source(dataset: dict) -> dict:
    return {key: value for key, value in dataset.items() if key not in ("pipeline", "test_mode")}
