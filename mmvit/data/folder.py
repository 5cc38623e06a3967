"""Finding annotation files and pictures in a folder that someone brings."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmvit.data.annotations import CocoAnnotations, load_json, read_coco
from mmvit.errors import UserError

EXPECTED = """Expected one of
  annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/   (COCO)
  train/_annotations.coco.json, valid/_annotations.coco.json, pictures beside them                 (Roboflow)
  train.json, val.json, images/                                          (names that hold 'train' and 'val')
  one json for both training and validation, pictures in images/ or beside it"""

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "minival"), "test": ("test", "testing")}
_MANY = 50  # a folder with more json files holds one for each picture, of some other format
_SNIFFED_WHOLE = 64 << 20  # bytes; of larger files only this much is looked at


class CocoFolder(NamedTuple):
    """What `find_coco_json` found. ``img_dirs``: folders of the training and of the validation pictures."""

    train_json: Path
    val_json: Path
    img_dirs: tuple[Path, Path]


def find_coco_json(path: str | Path) -> CocoFolder:
    """The COCO-style detection data in folder `path` (or described by the json file `path`).

    A single detection json serves for training and validation both. Panoptic, caption and keypoint-only files are passed over.

    Raises:
        UserError: nothing fits, or more than one file does; lists what was found and what is expected.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such folder. Give the folder of your COCO-style data")
    if path.is_file():
        train = val = path
    else:
        train, val = choose(path, _detection_files(path), "COCO-style detection json", EXPECTED)
    root = path if path.is_dir() else None
    train_dir = find_image_dir(read_coco(train), root)
    val_dir = train_dir if val == train else find_image_dir(read_coco(val), root)
    return CocoFolder(train, val, (Path(train_dir), Path(val_dir)))


def find_image_dir(annotations: CocoAnnotations, root: Path | None = None) -> str:
    """The folder that the 'file_name' entries are relative to, among the places where pictures usually lie.

    Raises:
        UserError: none of them holds the file's pictures.
    """
    return str(find_pictures(annotations.path, annotations.file_names, root))


def find_pictures(json_path: Path, names: Sequence[str], root: Path | None = None) -> Path:
    """The folder below which lie the pictures `names` of an annotation file, among the places where pictures usually lie.

    Raises:
        UserError: none of them holds any.
    """
    probes = names[:: max(1, len(names) // 16)][:16]
    places = _image_places(json_path, root)
    counts = [sum(os.path.isfile(place / name) for name in probes) for place in places]
    if not any(counts):
        raise UserError(
            f"{json_path}: found none of its pictures ({', '.join(probes[:3])}, ...) in "
            f"{', '.join(str(place) for place in places)}. Put them in one of these folders or give img_dir"
        )
    return places[counts.index(max(counts))]


def _image_places(json_path: Path, root: Path | None) -> list[Path]:
    """Existing folders to look in, the likeliest first."""
    beside, above = json_path.parent, json_path.parent.parent
    stem = re.sub(r"^(instances|panoptic|annotations?|coco|bbox|detection)[_\-.]*", "", json_path.stem)
    split = _split_of(json_path, beside)
    names = [name for name in (stem, *(SPLITS[split] if split else ())) if name]
    bases = [beside, above] if root is None else [beside, *([above] if root in (above, *above.parents) else []), root]
    places = []
    for base in bases:
        places += [base / folder / name for folder in ("", "images", "leftImg8bit") for name in names]
        places += [base, base / "images", base / "imgs", base / "data", base / "JPEGImages"]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def choose(root: Path, files: list[Path], kind: str, expected: str) -> tuple[Path, Path]:
    """The training and the validation file among the `files` of a `kind` in `root`; UserError, which lists what is
    `expected`, when that cannot be told.
    """
    if not files:
        raise UserError(f"{root}: no {kind} found ({inventory(root)}).\n{expected}")
    if len(files) == 1:
        return files[0], files[0]
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file, root), []).append(file)
    train, val = groups.get("train", []), groups.get("val") or groups.get("test", [])
    if len(train) != 1 or len(val) != 1:
        found = "".join(f"\n  {file.relative_to(root)}" for file in files)
        raise UserError(
            f"{root}: cannot tell which of these is for training and which for validation:{found}\n{expected}\n"
            "Rename or remove files so that one holds 'train' and one 'val' in its name, or give one json file itself"
        )
    return train[0], val[0]


def _split_of(file: Path, root: Path) -> str | None:
    """'train', 'val' or 'test' by the words in the file's name or, failing that, in its folder's below `root`."""
    parts = [file.stem]
    if file.parent != root:
        parts.append(file.parent.name)
    elif file.name.startswith("_annotations"):
        parts.append(root.name)
    for part in parts:
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, names in SPLITS.items():
            if words & set(names):
                return split
    return None


def _detection_files(root: Path) -> list[Path]:
    """Detection jsons in `root` and its direct subfolders; of COCO's own file names only the instances."""
    folders = [root, *sorted(item for item in root.iterdir() if item.is_dir())]
    listings = [sorted(folder.glob("*.json")) for folder in folders]
    candidates = [file for files in listings if len(files) <= _MANY for file in files]
    instances = [
        file for file in candidates if file.name.startswith("instances_") and _split_of(file, root) in ("train", "val")
    ]
    return [file for file in instances or candidates if _is_detection(file)]


def _is_detection(file: Path) -> bool:
    """Whether the json holds images, categories and annotations with boxes. Only the head of a very large file is read.

    A file of the COCO names that cannot be read counts, so that the reader can say what is wrong with it.
    """
    if file.stat().st_size > _SNIFFED_WHOLE:
        with file.open(encoding="utf-8", errors="replace") as stream:
            head = stream.read(_SNIFFED_WHOLE)
        return ('"images"' in head or '"annotations"' in head) and '"segments_info"' not in head and '"caption"' not in head
    try:
        content = load_json(file)
    except UserError:
        return file.name.startswith(("instances", "_annotations")) or _split_of(file, file.parent) is not None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return False
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or "categories" not in content:
        return file.name.startswith("instances")
    return not annotations or (isinstance(annotations[0], dict) and "bbox" in annotations[0])


def inventory(root: Path) -> str:
    """The names in a folder, in a line."""
    names = [item.name + ("/" if item.is_dir() else "") for item in sorted(root.iterdir())]
    return f"found: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "the folder is empty"
