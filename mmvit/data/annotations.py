"""COCO annotation files: read once, checked, packed in arrays.

A COCO training file holds 860 000 annotations. As Python objects they cost gigabytes in every data-loading process, as arrays
some tens of megabytes that forked processes share.
"""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvit.errors import UserError, did_you_mean

_INSTANCES_HINT = "Give a COCO detection file, with the keys 'images', 'annotations' and 'categories'"


@dataclass(frozen=True)
class CocoAnnotations:
    """A checked COCO detection file. I images in file order; A annotations sorted by image, in file order within an image.

    ``boxes`` are as in the file: x, y, width, height in pixels, not clipped. Annotations of image i are ``slice(starts[i],
    starts[i+1])``.
    """

    path: Path
    classes: tuple[str, ...]  # sorted by category id
    cat_ids: tuple[int, ...]
    image_ids: np.ndarray  # int64 (I,)
    file_names: tuple[str, ...]
    sizes: np.ndarray  # int32 (I, 2): height, width
    starts: np.ndarray  # int64 (I + 1,)
    ann_ids: np.ndarray  # int64 (A,); -1 where the file gives none
    image_index: np.ndarray  # int32 (A,)
    class_index: np.ndarray  # int32 (A,), into `classes`
    boxes: np.ndarray  # float64 (A, 4)
    areas: np.ndarray  # float64 (A,); width * height where the file gives none
    crowd: np.ndarray  # bool (A,)
    segmentations: PackedObjects | None  # A objects, when asked for

    def select_classes(self, classes: Sequence[str] | None) -> tuple[int, ...]:
        """Positions in `self.classes` of the names in `classes` (None: all). UserError when a name is not in the file."""
        if classes is None:
            return tuple(range(len(self.classes)))
        if isinstance(classes, str):
            raise UserError(f"classes must be a list of names, got the single text {classes!r}. Write [{classes!r}]")
        for name in classes:
            if name not in self.classes:
                raise UserError(
                    f"{self.path}: class {name!r} is not among the file's categories ({_some(self.classes)})."
                    f"{did_you_mean(name, self.classes)} Correct the class list, or leave it out to take the file's"
                )
        if len(set(classes)) != len(classes):
            raise UserError(f"classes holds {_first_duplicate(classes)!r} twice. Name every class once")
        return tuple(self.classes.index(name) for name in classes)

    def clipped_boxes(self) -> np.ndarray:
        """Boxes as x1, y1, x2, y2 within their picture, float64 (A, 4); of no extent where nothing lies inside."""
        limits = self.sizes[self.image_index][:, [1, 0, 1, 0]]
        corners = np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)
        return np.clip(corners, 0, limits)


class PackedObjects:
    """An immutable sequence of Python objects, pickled into one byte array (shared, not copied, by forked processes)."""

    def __init__(self, objects: Sequence[Any]) -> None:
        chunks = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in objects]
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(chunks), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = self._ends[index - 1] if index > 0 else 0
        return pickle.loads(self._bytes[start : self._ends[index]].tobytes())


def read_coco(path: str | Path, with_segmentations: bool = False) -> CocoAnnotations:
    """Reads and checks a COCO detection file. The last few files are kept, so that datasets and metrics may share one.

    Raises:
        UserError: naming the file, the key, the image or annotation id and the remedy.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        raise UserError(f"{path}: no such annotation file. {_neighbours(path)}") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder; the annotation file is expected. {_INSTANCES_HINT}")
    return _read_cached(path.absolute(), stat.st_mtime_ns, stat.st_size, with_segmentations)


@functools.lru_cache(maxsize=4)
def _read_cached(path: Path, mtime: int, size: int, with_segmentations: bool) -> CocoAnnotations:
    content = load_json(path, None if with_segmentations else _without_segmentation)
    return _pack(path, content, with_segmentations)


def _without_segmentation(item: dict) -> dict:
    item.pop("segmentation", None)
    return item


def load_json(path: Path, object_hook: Any = None) -> Any:
    """The content of a json file; UserError when it is not json or cut off."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a json text file (byte {error.start} is not UTF-8). {_INSTANCES_HINT}") from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}). Check the path and its permissions") from None
    try:
        return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UserError(f"{path}: the file is empty. Download or write it again") from None
        if error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated string"):
            raise UserError(
                f"{path}: the json ends too early, at line {error.lineno} (character {len(text)}): the file is truncated. "
                "Download or write it again"
            ) from None
        raise UserError(
            f"{path}: not valid json at line {error.lineno}, column {error.colno} ({error.msg}). {_INSTANCES_HINT}"
        ) from None


def _pack(path: Path, content: Any, with_segmentations: bool) -> CocoAnnotations:
    images, annotations, categories = _sections(path, content)
    image_ids, file_names, sizes = _pack_images(path, images)
    ann_image = _integers(path, annotations, "annotations", "image_id")
    ann_category = _integers(path, annotations, "annotations", "category_id")
    classes, cat_ids = _pack_categories(path, categories, ann_category)
    image_index = _positions(ann_image, image_ids)
    class_index = _positions(ann_category, np.array(cat_ids, dtype=np.int64))
    _check_references(path, annotations, "image_id", "images", image_index)
    _check_references(path, annotations, "category_id", "categories", class_index)
    boxes = _pack_boxes(path, annotations)
    areas, crowd, ann_ids = _pack_extras(path, annotations, boxes)
    _check_box_format(path, annotations, boxes, crowd, sizes[image_index])

    order = np.argsort(image_index, kind="stable")
    starts = np.searchsorted(image_index[order], np.arange(len(image_ids) + 1))
    segmentations = PackedObjects([annotations[i].get("segmentation") for i in order]) if with_segmentations else None
    arrays = {
        "image_ids": image_ids,
        "sizes": sizes,
        "starts": starts,
        "ann_ids": ann_ids[order],
        "crowd": crowd[order],
        "areas": areas[order],
        "image_index": image_index[order].astype(np.int32),
        "class_index": class_index[order].astype(np.int32),
        "boxes": boxes[order],
    }
    for array in arrays.values():
        array.flags.writeable = False
    return CocoAnnotations(
        path=path, classes=classes, cat_ids=cat_ids, file_names=file_names, segmentations=segmentations, **arrays
    )


def _sections(path: Path, content: Any) -> tuple[list[dict], list[dict], list[dict]]:
    if isinstance(content, list):
        raise UserError(f"{path}: a list of {len(content)} entries, as in a file of detection results. {_INSTANCES_HINT}")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not a json object. {_INSTANCES_HINT}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise UserError(
                f"{path}: the key {key!r} is missing (found: {_some(content)}).{did_you_mean(key, content)} {_INSTANCES_HINT}"
            )
        if not isinstance(content[key], list) or not all(isinstance(item, dict) for item in content[key]):
            raise UserError(f"{path}: {key!r} is not a list of objects. {_INSTANCES_HINT}")
    if not content["images"]:
        raise UserError(f"{path}: 'images' is empty. Give a file with at least one image")
    if not content["categories"]:
        raise UserError(f"{path}: 'categories' is empty. List every class as {{'id': 1, 'name': 'cat'}}")
    if content["annotations"] and "segments_info" in content["annotations"][0]:
        raise UserError(
            f"{path}: a panoptic file ('segments_info' in 'annotations'), not a detection file. Give the file with the "
            "instances, in COCO instances_*.json"
        )
    return content["images"], content["annotations"], content["categories"]


def _pack_images(path: Path, images: list[dict]) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    ids = _integers(path, images, "images", "id")
    if len(np.unique(ids)) != len(ids):
        raise UserError(
            f"{path}: image id {_first_duplicate(ids.tolist())} appears twice in 'images'. Give every image its own id"
        )
    names = tuple(image.get("file_name") for image in images)
    for name, image_id in zip(names, ids):
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: 'file_name' of image id {image_id} is {name!r}. Give the name of the picture's file")
    sizes = np.stack([_integers(path, images, "images", key) for key in ("height", "width")], axis=1)
    if (sizes <= 0).any():
        bad = int(np.flatnonzero((sizes <= 0).any(axis=1))[0])
        raise UserError(
            f"{path}: image id {ids[bad]} has height {sizes[bad, 0]} and width {sizes[bad, 1]}. Give its size in pixels"
        )
    return ids, names, sizes.astype(np.int32)


def _pack_categories(path: Path, categories: list[dict], used: np.ndarray) -> tuple[tuple[str, ...], tuple[int, ...]]:
    ids = _integers(path, categories, "categories", "id")
    if len(np.unique(ids)) != len(ids):
        raise UserError(
            f"{path}: category id {_first_duplicate(ids.tolist())} appears twice in 'categories'. Give every class its own id"
        )
    for category in categories:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise UserError(
                f"{path}: 'name' of category id {category['id']} is {category.get('name')!r}. Give the class a name"
            )
    categories = _without_group_entry(categories, set(used.tolist()))
    names = [category["name"] for category in categories]
    if len(set(names)) != len(names):
        name = _first_duplicate(names)
        raise UserError(
            f"{path}: the class name {name!r} appears twice in 'categories' (ids "
            f"{_some([c['id'] for c in categories if c['name'] == name])}). Merge the two or rename one"
        )
    ordered = sorted((int(category["id"]), category["name"]) for category in categories)
    return tuple(name for _, name in ordered), tuple(identity for identity, _ in ordered)


def _without_group_entry(categories: list[dict], used: set[int]) -> list[dict]:
    """Drops Roboflow's extra entry: an unused category of supercategory 'none' that the others name as their supercategory."""
    groups = {category.get("supercategory") for category in categories if category.get("supercategory") != "none"}
    return [
        category
        for category in categories
        if category.get("supercategory") != "none" or category["name"] not in groups or category["id"] in used
    ]


def _integers(path: Path, items: list[dict], section: str, key: str) -> np.ndarray:
    """The integers under `key` of every item, int64 (n,)."""
    values = [item.get(key) for item in items]
    try:
        array = np.asarray(values) if values else np.zeros(0, dtype=np.int64)
    except (ValueError, OverflowError):
        array = np.asarray(values, dtype=object)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.array_equal(array, np.floor(array)):
        for position, value in enumerate(values):
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or value != value
                or value in (float("inf"), float("-inf"))
                or int(value) != value
            ):
                _raise_bad_integer(path, items[position], section, position, key, value)
    return array.astype(np.int64)


def _raise_bad_integer(path: Path, item: dict, section: str, position: int, key: str, value: Any) -> None:
    where = f"{section}[{position}]" if key == "id" or "id" not in item else f"{section}[{position}] (id {item['id']})"
    if value is None:
        raise UserError(f"{path}: {where} has no {key!r}. Every entry of {section!r} needs this integer")
    raise UserError(f"{path}: {key!r} of {where} is {value!r}, not an integer. Write it as a json number")


def _positions(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Index into `ids` of every value, int64; -1 where it is not there."""
    order = np.argsort(ids, kind="stable")
    slots = np.minimum(np.searchsorted(ids[order], values), len(ids) - 1)
    found = order[slots]
    return np.where(ids[found] == values, found, -1)


def _check_references(path: Path, annotations: list[dict], key: str, section: str, index: np.ndarray) -> None:
    bad = np.flatnonzero(index < 0)
    if len(bad):
        first = annotations[bad[0]]
        raise UserError(
            f"{path}: annotation id {first.get('id')} has {key} {first[key]}, which {section!r} does not hold ({len(bad)} of "
            f"{len(annotations)} annotations). Add the entry to {section!r} or remove the annotations"
        )


def _pack_boxes(path: Path, annotations: list[dict]) -> np.ndarray:
    """Boxes as in the file, float64 (A, 4)."""
    if not annotations:
        return np.zeros((0, 4))
    values = [annotation.get("bbox") for annotation in annotations]
    try:
        boxes = np.asarray(values)
    except ValueError:
        boxes = np.asarray([])
    if boxes.shape != (len(values), 4) or boxes.dtype.kind not in "iuf" or not np.isfinite(boxes).all():
        for annotation, value in zip(annotations, values):
            if value is None:
                raise UserError(
                    f"{path}: annotation id {annotation.get('id')} (image id {annotation.get('image_id')}) has no 'bbox'. "
                    "A detection file needs [x, y, width, height] in pixels for every annotation"
                )
            if not _is_box(value):
                raise UserError(
                    f"{path}: 'bbox' of annotation id {annotation.get('id')} (image id {annotation.get('image_id')}) is "
                    f"{_short(value)}, not four finite numbers. Write [x, y, width, height] in pixels"
                )
    return boxes.astype(np.float64)


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(number, (int, float)) and not isinstance(number, bool) and np.isfinite(number) for number in value)
    )


def _pack_extras(path: Path, annotations: list[dict], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas float64, crowd flags bool, ids int64, each (A,)."""
    areas = boxes[:, 2] * boxes[:, 3]
    for position, annotation in enumerate(annotations):
        area = annotation.get("area")
        if area is None:
            continue
        if isinstance(area, bool) or not isinstance(area, (int, float)) or not np.isfinite(area):
            raise UserError(
                f"{path}: 'area' of annotation id {annotation.get('id')} is {_short(area)}, not a number. Write the object's "
                "area in square pixels, or leave it out"
            )
        areas[position] = area
    crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=bool)
    ids = [annotation.get("id") for annotation in annotations]
    ann_ids = np.array([item if type(item) is int else -1 for item in ids], dtype=np.int64)
    return areas, crowd, ann_ids


def _check_box_format(path: Path, annotations: list[dict], boxes: np.ndarray, crowd: np.ndarray, sizes: np.ndarray) -> None:
    """Stops on boxes that are evidently not x, y, width, height in pixels. sizes: (A, 2), height and width of each box's
    image.
    """
    regular = ~crowd
    if not regular.any():
        return
    first = annotations[int(np.flatnonzero(regular)[0])]
    example = f"annotation id {first.get('id')}: {_short(first['bbox'])}"
    boxes, limits = boxes[regular], sizes[regular][:, ::-1].astype(np.float64)
    if boxes.max() <= 1.0 and boxes.max() > 0 and boxes.min() >= 0:
        raise UserError(
            f"{path}: every bbox lies within 0..1 and looks normalised ({example}). COCO boxes are x, y, width, height in "
            "pixels: multiply x and width by the image's width, y and height by its height"
        )
    leaves = (boxes[:, :2] + boxes[:, 2:] > 1.05 * limits + 1).any(axis=1)
    if leaves.mean() <= 0.5:
        return
    outside = f"{path}: {int(leaves.sum())} of {len(boxes)} boxes end outside their image"
    if (boxes[leaves, 2:] > boxes[leaves, :2]).all() and (boxes[leaves, 2:] <= 1.05 * limits[leaves] + 1).all():
        raise UserError(
            f"{outside} when read as x, y, width, height, and fit when read as x1, y1, x2, y2 ({example}). COCO boxes are "
            "x,y,width,height: subtract x1 and y1 from the last two numbers"
        )
    raise UserError(
        f"{outside} ({example}). COCO boxes are x,y,width,height in pixels of the image size given in 'images': check whether "
        "the pictures were resized or the box format differs"
    )


def _neighbours(path: Path) -> str:
    """What lies where the file was expected."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    names = sorted(item.name for item in folder.iterdir())
    jsons = [name for name in names if name.endswith(".json")]
    if folder == path.parent and jsons:
        return f"{folder} holds {_some(jsons)}.{did_you_mean(path.name, jsons)} Correct the path"
    return f"{folder} holds {_some(names) or 'nothing'}. Correct the path or put the file there"


def _some(names: Any, limit: int = 8) -> str:
    """The first few of `names` in a line."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_duplicate(values: Sequence) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
