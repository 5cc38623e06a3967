"""Finding panoptic files, their maps and their pictures in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmvit.data.folder import choose, find_pictures
from mmvit.data.panoptic_dataset import pictures_of
from mmvit.data.panoptic_files import read_panoptic
from mmvit.data.shapes import SEGMENTED_ODD_COLOURS, ensure_shapes
from mmvit.errors import UserError

EXPECTED = """Expected one of
  annotations/panoptic_{train,val}2017.json, annotations/panoptic_{train,val}2017/*.png, train2017/, val2017/       (COCO)
  gtFine/cityscapes_panoptic_{train,val}_trainId.json and folder, leftImg8bit/{train,val}/<city>/              (Cityscapes)
  ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/*.png, images/{training,validation}/               (ADE20K)
  panoptic_train.json, panoptic_val.json, panoptic_train/*.png, panoptic_val/*.png, images/   (or train/ and val/)
  panoptic.json for both training and validation, panoptic/*.png, images/"""

#: name -> files that prepared data have
_PREPARED = {
    "coco": "annotations/panoptic_{split}2017.json",
    "cityscapes": "gtFine/cityscapes_panoptic_{split}_trainId.json",
    "ade20k": "ade20k_panoptic_{split}.json",
}
_MANY = 50  # a folder with more json files holds one for each picture


class PanopticSplit(NamedTuple):
    """The data of training or validation. ``instances``: a COCO detection file of the things, or None."""

    ann_file: Path
    png_dir: Path
    img_dir: Path
    instances: Path | None = None


@dataclass(frozen=True)
class PanopticFiles:
    """What `find_panoptic` found."""

    root: Path
    train: PanopticSplit
    val: PanopticSplit

    def dataset_args(self, split: str) -> dict:
        """Arguments of `PanopticDataset` for "train" or "val", of plain types, as a config holds them."""
        place: PanopticSplit = getattr(self, split)
        return {key: str(getattr(place, key)) for key in ("ann_file", "png_dir", "img_dir")}


def find_panoptic(path_or_name: str | Path, data_root: str | Path = "data", training: bool = True) -> PanopticFiles:
    """The panoptic data in a folder, or of a name.

    Args:
        path_or_name: "coco", "ade20k" or "cityscapes" (under `data_root`), "shapes" (written there if need be), a panoptic
            json, or a folder; see `EXPECTED` for what it may look like.
        data_root: folder of the prepared data sets.
        training: False: training data may be missing; those of validation then stand for them.

    Raises:
        UserError: nothing fits; lists what was found and what is expected.
    """
    name, path = str(path_or_name), Path(path_or_name)
    if name == "shapes":
        return _find(
            ensure_shapes(Path(data_root) / "shapes_panoptic", layouts=("coco", "panoptic"), odd_colours=SEGMENTED_ODD_COLOURS)
        )
    if name in _PREPARED:
        return _find_prepared(Path(data_root) / name, name, training)
    if path.is_file():
        return _files(path.parent, path, path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Give the folder of your pictures and panoptic maps")
    return _find(path)


def _find_prepared(root: Path, name: str, training: bool) -> PanopticFiles:
    files = {split: root / _PREPARED[name].format(split=split) for split in ("train", "val")}
    if not files["train"].exists() and not training:
        files["train"] = files["val"]
    missing = [str(file) for file in files.values() if not file.exists()]
    if missing:
        source = " --from DIR" if name == "cityscapes" else ""
        raise UserError(
            f"{root}: no {' and no '.join(dict.fromkeys(missing))}. Run `python tools/prepare_dataset.py {name} --panoptic"
            f"{source} --out {root}`, or make it a link to the folder that has it. --data shapes trains on synthetic data "
            "at once, --data PATH on your own"
        )
    return _files(root, files["train"], files["val"])


def _find(root: Path) -> PanopticFiles:
    folders = [root, *sorted(item for item in root.iterdir() if item.is_dir())]
    listings = [sorted(folder.glob("*panoptic*.json")) for folder in folders]
    files = [file for found in listings if len(found) <= _MANY for file in found if "categories" not in file.name]
    by_train_id = [file for file in files if file.stem.endswith("_trainId")]
    return _files(root, *choose(root, by_train_id or files, "panoptic json", EXPECTED))


def _files(root: Path, train: Path, val: Path) -> PanopticFiles:
    found = _split(root, train)
    return PanopticFiles(root, found, found if val == train else _split(root, val))


def _split(root: Path, ann_file: Path) -> PanopticSplit:
    source = read_panoptic(ann_file)
    if not (names := pictures_of(source)):
        raise UserError(f"{ann_file}: its 'images' are missing or do not fit its 'annotations'. {EXPECTED}")
    stem = ann_file.stem.removesuffix("_trainId")
    likely = [ann_file.with_name(f"{stem.replace('panoptic', word)}.json") for word in ("instances", "instance")]
    instances = next((file for file in likely if file != ann_file and file.is_file()), None)
    return PanopticSplit(ann_file, source.png_dir, find_pictures(ann_file, names, root), instances)
