"""Finding pictures, masks and class names of semantic segmentation data in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mmvit.data.classes import ADE20K_CLASSES, ADE20K_PALETTE, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, Colour
from mmvit.data.folder import SPLITS, inventory
from mmvit.data.images import IMAGE_SUFFIXES
from mmvit.data.masks import IGNORE, check_mask_format
from mmvit.data.semantic import list_files
from mmvit.data.shapes import SEGMENTED_ODD_COLOURS, ensure_shapes
from mmvit.errors import UserError

EXPECTED = """Expected one of
  images/{training,validation}/ADE_*.jpg, annotations/{training,validation}/ADE_*.png                       (ADE20K)
  leftImg8bit/{train,val}/<city>/, gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png                     (Cityscapes)
  images/{train,val}/, masks/{train,val}/ and classes.txt with one name per line ('name' or 'name red green blue')
  train/images/, train/masks/, val/images/, val/masks/ and classes.txt
  images/, masks/ and classes.txt: the same pictures for training and validation, or split by train.txt and val.txt
Instead of images/ may stand img/, imgs/, pictures/ or JPEGImages/; instead of masks/ mask/, annotations/, labels/ or
SegmentationClass/; instead of classes.txt names.txt, labels.txt or classes.json (a list, or {"0": "name", ...})"""

_IMAGES = ("images", "image", "imgs", "img", "pictures", "JPEGImages")
_MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "SegmentationClass", "SegmentationClassPNG")
_NAMES = ("classes.txt", "names.txt", "labels.txt", "classes.json", "names.json")
_NO_CLASS = ("ignore", "void")  # names of lines with a colour that is no class


class SemanticSplit(NamedTuple):
    """The pictures and masks of training or validation. ``split``: a file that lists those to use, or None."""

    img_dir: Path
    mask_dir: Path
    split: Path | None = None


@dataclass(frozen=True)
class SemanticFiles:
    """What `find_semantic` found. The fields from ``img_suffix`` on mean what they mean to `SemanticDataset`."""

    root: Path
    train: SemanticSplit
    val: SemanticSplit
    classes: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    img_suffix: str | None = None
    mask_suffix: str = ".png"
    mask_format: str = "index"
    ignore_index: int = IGNORE
    ignore_colours: tuple[Colour, ...] = ()

    def dataset_args(self, split: str) -> dict:
        """Arguments of `SemanticDataset` for "train" or "val", of plain types, as a config holds them."""
        place: SemanticSplit = getattr(self, split)
        args = {
            "img_dir": str(place.img_dir),
            "mask_dir": str(place.mask_dir),
            "classes": self.classes,
            "img_suffix": self.img_suffix,
            "mask_suffix": self.mask_suffix,
            "mask_format": self.mask_format,
            "ignore_index": self.ignore_index,
        }
        if self.palette is not None:
            args["palette"] = self.palette
        if self.ignore_colours:
            args["ignore_colours"] = self.ignore_colours
        if place.split is not None:
            args["split"] = str(place.split)
        return args


def find_semantic(
    path_or_name: str | Path,
    mask_format: str | None = None,
    ignore_index: int | None = None,
    data_root: str | Path = "data",
) -> SemanticFiles:
    """The semantic segmentation data in a folder, or of a name.

    Args:
        path_or_name: "ade20k" or "cityscapes" (under `data_root`), "shapes" (written there if need be), or a folder; see
            `EXPECTED` for what it may look like.
        mask_format, ignore_index: what the masks' values mean (see `MaskReader`), where it is not what the layout tells.
        data_root: folder of the prepared data sets.

    Raises:
        UserError: nothing fits; lists what was found and what is expected.
    """
    name, data_root = str(path_or_name), Path(data_root)
    if name == "shapes":
        files = _find(ensure_shapes(data_root / "shapes_semantic", layouts=("ade20k",), odd_colours=SEGMENTED_ODD_COLOURS))
    elif name in ("ade20k", "cityscapes"):
        files = _find_prepared(data_root / name, name)
    else:
        files = _find(Path(path_or_name))
    if mask_format is not None:
        files = replace(files, mask_format=check_mask_format(mask_format))
    return files if ignore_index is None else replace(files, ignore_index=ignore_index)


def _find_prepared(root: Path, name: str) -> SemanticFiles:
    if not root.is_dir():
        source = " --from DIR" if name == "cityscapes" else ""
        raise UserError(
            f"{root}: the data set is not there. Run `python tools/prepare_dataset.py {name}{source} --out {root}`, or make it "
            "a link to the folder that has it. --data shapes trains on synthetic data at once, --data PATH on your own"
        )
    return _find(root)


def _find(root: Path) -> SemanticFiles:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Give the folder of your pictures and masks")
    for place in (root, root / "ADEChallengeData2016", root / "ade20k"):
        if _is_ade20k(place):
            return _ade20k(place)
    for place in (root, root / "cityscapes"):
        if (place / "leftImg8bit").is_dir() and (place / "gtFine").is_dir():
            return _cityscapes(place)
    return _user_folder(root)


def _is_ade20k(root: Path) -> bool:
    images = root / "images" / "training"
    return (root / "annotations" / "training").is_dir() and images.is_dir() and any(images.glob("ADE_*"))


def _ade20k(root: Path) -> SemanticFiles:
    train, val = (SemanticSplit(root / "images" / s, root / "annotations" / s) for s in ("training", "validation"))
    own = root / "classes.txt"
    names = read_names(own) if own.is_file() else Names(ADE20K_CLASSES, ADE20K_PALETTE, ())
    return SemanticFiles(root, train, val, names.classes, names.palette, ".jpg", ".png", "reduce_zero")


def _cityscapes(root: Path) -> SemanticFiles:
    train, val = (SemanticSplit(root / "leftImg8bit" / s, root / "gtFine" / s) for s in ("train", "val"))
    suffix = "_gtFine_labelTrainIds.png"
    for split in (train, val):
        if not split.mask_dir.is_dir() or not any(split.mask_dir.glob(f"*/*{suffix}")):
            raise UserError(
                f"{split.mask_dir}: holds no masks *{suffix}. Make them with `python tools/prepare_dataset.py cityscapes "
                f"--from {root} --out data/cityscapes`"
            )
    return SemanticFiles(root, train, val, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, "_leftImg8bit.png", suffix)


# --- a user's folder ---------------------------------------------------------------------------------------------------------


def _user_folder(root: Path) -> SemanticFiles:
    splits = _splits(root)
    if splits is None:
        raise UserError(f"{root}: no pictures with masks found ({inventory(root)}).\n{EXPECTED}")
    names = _names(root, splits)
    train, val = splits
    suffixes = {_suffixes(split) for split in (train, val)}
    if len(suffixes) > 1:
        raise UserError(
            f"{root}: names of masks differ between training and validation: "
            + " and ".join(f"picture*{image or '.*'} with mask*{mask}" for image, mask in sorted(suffixes, key=str))
            + ". Name them alike"
        )
    img_suffix, mask_suffix = suffixes.pop()
    return SemanticFiles(
        root, train, val, names.classes, names.palette, img_suffix, mask_suffix, ignore_colours=names.ignore_colours
    )


def _splits(root: Path) -> tuple[SemanticSplit, SemanticSplit] | None:
    """Training and validation in any of the layouts; None if there is none of them."""
    images, masks = _child(root, _IMAGES), _child(root, _MASKS)
    if images and masks:
        if not (lists := _split_lists(root)):
            found = [SemanticSplit(a, b) for a, b in zip(_split_folders(images), _split_folders(masks)) if a and b]
            return _both(found, root, (SemanticSplit(images, masks)))
        return SemanticSplit(images, masks, lists[0]), SemanticSplit(images, masks, lists[1])
    found = []
    for folder in _split_folders(root):
        images, masks = (folder and _child(folder, names) for names in (_IMAGES, _MASKS))
        found += [SemanticSplit(images, masks)] if images and masks else []
    return _both(found, root, None)


def _both(
    found: Sequence[SemanticSplit], root: Path, whole: SemanticSplit | None
) -> tuple[SemanticSplit, SemanticSplit] | None:
    if len(found) == 2:
        return found[0], found[1]
    if len(found) == 1:
        raise UserError(
            f"{root}: only one of training and validation has pictures and masks ({found[0].img_dir}).\n{EXPECTED}\n"
            "Add the other, or move the pictures up so that they serve for both"
        )
    return (whole, whole) if whole else None


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """The subfolder that has one of the names, however it is capitalised; the first name wins."""
    present = {item.name.lower(): item for item in folder.iterdir() if item.is_dir()}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


def _split_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """Subfolders for training and for validation (failing that, test)."""
    train = _child(folder, SPLITS["train"])
    return train, _child(folder, SPLITS["val"]) or _child(folder, SPLITS["test"])


def _split_lists(root: Path) -> tuple[Path, Path] | None:
    """The files train.txt and val.txt, beside the folders or where PASCAL VOC has them."""
    for folder in (root, root / "splits", root / "ImageSets" / "Segmentation"):
        if (folder / "train.txt").is_file() and (folder / "val.txt").is_file():
            return folder / "train.txt", folder / "val.txt"
    return None


def _suffixes(split: SemanticSplit) -> tuple[str | None, str]:
    """(img_suffix, mask_suffix) that pair the names of a split: ``a.jpg`` with ``a.png`` gives (None, ".png"), ``a.jpg`` with
    ``a_mask.png`` gives (None, "_mask.png"), ``a_rgb.png`` with ``a_gt.png`` gives ("_rgb.png", "_gt.png").
    """
    images, masks = _pictures(split.img_dir), _pictures(split.mask_dir)
    for folder, names in ((split.img_dir, images), (split.mask_dir, masks)):
        if not names:
            raise UserError(f"{folder}: holds no pictures ({inventory(folder)}).\n{EXPECTED}")
    ends = {Path(name).suffix for name in masks}
    candidates = [
        (image, mask)
        for image in (None, _common_end(images))
        for mask in (*sorted(ends), *_mask_ends(images, masks, image))
        if mask
    ]
    best = max(candidates, key=lambda pair: len(_stems(images, pair[0]) & _stems(masks, pair[1])))
    if not _stems(images, best[0]) & _stems(masks, best[1]):
        raise UserError(
            f"{split.mask_dir}: no mask has the name of a picture in {split.img_dir} (masks: {', '.join(masks[:3])}, ...; "
            f"pictures: {', '.join(images[:3])}, ...). Give every picture a mask of the same name, such as "
            f"{Path(images[0]).stem}.png"
        )
    return best


def _pictures(folder: Path) -> list[str]:
    return [name for name in list_files(folder) if name.lower().endswith(IMAGE_SUFFIXES)] if folder.is_dir() else []


def _common_end(names: Sequence[str]) -> str | None:
    """The ending from a "_", "-" or "." on that all names share, such as "_rgb.png"; None if it is but the suffix."""
    matches = {match.group() if (match := re.search(r"[_\-.][A-Za-z]\w*\.\w+$", name)) else None for name in names}
    return matches.pop() if len(matches) == 1 else None


def _mask_ends(images: Sequence[str], masks: Sequence[str], img_suffix: str | None) -> list[str]:
    """What follows a picture's name in the names of masks that begin with it (looked for with the first few pictures)."""
    stems = sorted(_stems(images, img_suffix))[:: max(1, len(images) // 16)][:16]
    return sorted(
        {name[len(stem) :] for stem in stems for name in masks if name.startswith(stem)}, key=lambda end: (len(end), end)
    )


def _stems(names: Sequence[str], suffix: str | None) -> set[str]:
    if suffix is None:
        return {name.rpartition(".")[0] for name in names}
    return {name[: -len(suffix)] for name in names if name.endswith(suffix)}


# --- names -------------------------------------------------------------------------------------------------------------------


class Names(NamedTuple):
    """The content of a names file. ``palette`` is None where it gives no colours."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    ignore_colours: tuple[Colour, ...]


def _names(root: Path, splits: tuple[SemanticSplit, SemanticSplit]) -> Names:
    folders = dict.fromkeys([root, *(folder.parent for split in splits for folder in split[:2]), splits[0].mask_dir])
    for folder in folders:
        for name in _NAMES:
            if (folder / name).is_file():
                return read_names(folder / name)
    raise UserError(
        f"{root}: there are pictures ({splits[0].img_dir}) and masks ({splits[0].mask_dir}), but no file with the names of the "
        f"classes. Write {root / 'classes.txt'}: one name per line, in the order of the masks' values"
    )


def read_names(path: str | Path) -> Names:
    """Class names from a text file, one per line as ``name`` or ``name red green blue`` (spaces or commas), or from a json
    file with a list of names or ``{"0": name, "1": name, ...}``.

    Empty lines and lines that start with "#" are skipped. A line ``ignore r g b`` or ``void r g b`` gives a colour of pixels
    without a class.

    Raises:
        UserError: names the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 text file ({error}). Write one class name per line") from None
    names = _json_names(path, text) if path.suffix == ".json" else _text_names(path, text)
    for name in names.classes:
        if names.classes.count(name) > 1:
            raise UserError(f"{path}: the class {name!r} appears twice. Name every class once")
    if not names.classes:
        raise UserError(f"{path}: holds no class names. Write one per line, in the order of the masks' values")
    return names


def _text_names(path: Path, text: str) -> Names:
    classes, palette, ignored = [], [], []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?)[\s,:]+(\d+)[\s,]+(\d+)[\s,]+(\d+)", line)
        if match is None:
            classes.append(line)
            continue
        colour = tuple(int(part) for part in match.groups()[1:])
        if max(colour) > 255:
            raise UserError(f"{path}: line {number} gives the colour {colour}; numbers from 0 to 255 are expected")
        if match[1].lower() in _NO_CLASS:
            ignored.append(colour)
        else:
            classes.append(match[1])
            palette.append(colour)
    if palette and len(palette) != len(classes):
        raise UserError(
            f"{path}: {len(palette)} of {len(classes)} classes have a colour. Write 'name red green blue' in every line, or in "
            "none"
        )
    return Names(tuple(classes), tuple(palette) or None, tuple(ignored))


def _json_names(path: Path, text: str) -> Names:
    hint = 'Write a list of names, or {"0": "name", "1": "name", ...}'
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid json ({error}). {hint}") from None
    if isinstance(content, dict):
        if set(content) != {str(index) for index in range(len(content))}:
            raise UserError(
                f"{path}: the keys are not the numbers 0 to {len(content) - 1}: {', '.join(list(content)[:8])}. {hint}"
            )
        content = [content[str(index)] for index in range(len(content))]
    if not isinstance(content, list) or not all(isinstance(name, str) and name for name in content):
        raise UserError(f"{path}: does not hold a list of names. {hint}")
    return Names(tuple(content), None, ())
