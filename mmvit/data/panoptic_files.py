"""COCO panoptic files: a json lists the segments of every picture, a PNG shows them, id = R + 256 G + 65536 B. Id 0 is void."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmvit.data.annotations import PackedObjects, load_json
from mmvit.errors import UserError, did_you_mean

#: Ids of segments are from 1 to MAX_ID.
MAX_ID = (1 << 24) - 1
#: where the PNGs of a panoptic file may lie
MAP_FOLDERS = ("panoptic", "panoptic_maps", "maps", "masks", "png", "pngs")
_HINT = "Give a COCO panoptic file, such as panoptic_val2017.json"


@dataclass(frozen=True)
class PanopticFile:
    """A COCO panoptic json, of ground truth or of results (then often without categories). Looked up by image id.

    Attributes:
        png_dir: folder of the PNGs.
        categories: ``dict(id, name, isthing, ...)`` in file order.
        positions: image id -> position of its annotation.
        annotations: ``dict(image_id, file_name, segments_info=[dict(id, category_id, iscrowd, area, ...)])`` in file order.
        images: the picture of each annotation, ``dict(file_name, height, width)``; None where the file does not
            say.
    """

    path: Path
    png_dir: Path
    categories: tuple[dict, ...]
    positions: Mapping[Hashable, int]
    annotations: PackedObjects
    images: PackedObjects

    def __getitem__(self, image_id: Hashable) -> dict:
        """The annotation of a picture; UserError when there is none."""
        if image_id not in self.positions:
            raise UserError(f"{self.path}: has no annotation of image id {image_id!r}. Give the file of the evaluated pictures")
        return self.annotations[self.positions[image_id]]

    def png_path(self, annotation: Mapping[str, Any]) -> Path:
        return self.png_dir / annotation["file_name"]

    def read_colours(self, annotation: Mapping[str, Any]) -> np.ndarray:
        """The map of an annotation's picture, see `read_colours`."""
        return read_colours(self.png_path(annotation), f"{self.path}: image id {annotation['image_id']}")

    def read_ids(self, annotation: Mapping[str, Any]) -> np.ndarray:
        """The id of every pixel of an annotation's picture, int32 (H, W)."""
        return rgb_to_ids(self.read_colours(annotation))


def read_panoptic(path: str | Path, png_dir: str | Path | None = None) -> PanopticFile:
    """Reads a COCO panoptic json. The last few are kept, so that datasets and metrics may share one.

    Args:
        png_dir: folder of the PNGs. None: the folder named like the file, without ``.json``; failing that, one of
            `MAP_FOLDERS` beside it that has them.

    Raises:
        UserError: a file or folder is missing, or it is no panoptic file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such panoptic file. {_HINT}")
    if png_dir is not None and not Path(png_dir).is_dir():
        raise UserError(f"{png_dir}: no such folder; the PNGs of {path} are expected there. Correct the folder")
    stat = path.stat()
    source = _read_cached(path, path.absolute(), stat.st_mtime_ns, stat.st_size)
    return replace(source, png_dir=_find_maps(source) if png_dir is None else Path(png_dir))


def _find_maps(source: PanopticFile) -> Path:
    """The folder of the PNGs."""
    like = source.path.with_suffix("")
    if like.is_dir():
        return like
    names = [source.annotations[index]["file_name"] for index in range(min(4, len(source.annotations)))]
    for folder in MAP_FOLDERS:
        if any((source.path.parent / folder / name).is_file() for name in names):
            return source.path.parent / folder
    raise UserError(f"{like}: no such folder; the PNGs of {source.path} are expected there. Correct the folder")


@functools.lru_cache(maxsize=4)
def _read_cached(path: Path, absolute: Path, mtime: int, size: int) -> PanopticFile:
    """The file, its ``png_dir`` left open."""
    content = load_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    categories = content.get("categories", []) if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not isinstance(categories, list):
        near = did_you_mean("annotations", content) if isinstance(content, dict) else ""
        raise UserError(f"{path}: has no list 'annotations'.{near} {_HINT}")
    _require(path, categories, "categories", ("id", "name"))
    _require(path, annotations, "annotations", ("image_id", "file_name", "segments_info"))
    positions: dict[Hashable, int] = {}
    for position, annotation in enumerate(annotations):
        if positions.setdefault(annotation["image_id"], position) != position:
            raise UserError(f"{path}: 'annotations' holds image id {annotation['image_id']!r} twice. Leave one of them")
    images = PackedObjects(_pictures(content.get("images") or (), annotations))
    return PanopticFile(path, path.with_suffix(""), tuple(categories), positions, PackedObjects(annotations), images)


def _pictures(images: Sequence[Any], annotations: Sequence[dict]) -> list[dict | None]:
    """What is known of the picture of each annotation."""
    keys = ("file_name", "height", "width")
    known = {
        item["id"]: {key: item[key] for key in keys} for item in images if isinstance(item, dict) and {"id", *keys} <= set(item)
    }
    return [known.get(annotation["image_id"]) for annotation in annotations]


def _require(path: Path, items: Sequence[Any], section: str, keys: Sequence[str]) -> None:
    for position, item in enumerate(items):
        missing = [key for key in keys if not isinstance(item, dict) or key not in item]
        if missing:
            raise UserError(f"{path}: entry {position} of {section!r} has no {missing[0]!r}. {_HINT}")


def read_colours(path: str | Path, where: str = "panoptic map") -> np.ndarray:
    """The colours of a panoptic PNG, uint8 (H, W, 3). UserError, which begins with `where`, when it is no RGB picture."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{where}: its panoptic map {path} does not exist. Correct the folder of the maps, or write the map")
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except UnidentifiedImageError:
        raise UserError(f"{where}: {path} is empty or not a picture ({path.stat().st_size} bytes). Write it again") from None
    except Exception as error:  # decoders fail in every way there is
        raise UserError(f"{where}: {path} is damaged or truncated ({error or type(error).__name__}). Write it again") from error
    if mode not in ("RGB", "RGBA"):
        raise UserError(
            f"{where}: {path} has pixels of mode {mode}; the colours of a panoptic map are ids, R + 256 G + 65536 B. Write it "
            "as RGB"
        )
    return np.ascontiguousarray(values[..., :3])


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """Colours uint8 (..., 3) as ids, int32 (...)."""
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Ids from 0 to `MAX_ID`, (H, W), as colours, uint8 (H, W, 3)."""
    return np.ascontiguousarray(ids.astype("<i4")[..., None].view(np.uint8)[..., :3])


def segment_positions(values: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Position in `segment_ids` (n,) of every id in `values`, int64: n for id 0, n + 1 for ids that are neither."""
    known = np.append(segment_ids, 0)
    order = np.argsort(known, kind="stable")
    found = order[np.minimum(np.searchsorted(known, values, sorter=order), len(known) - 1)]
    return np.where(known[found] == values, found, len(known))


def semantic_map(ids: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The class of every pixel, uint8 (H, W), 255 where there is no segment.

    Args:
        ids: the number of the segment that each pixel shows, counted from 1; 0 = void.
        segments: ``dict(label, ...)`` of each.
    """
    labels = np.array([255, *(segment["label"] for segment in segments)], dtype=np.uint8)
    return labels[ids]


def check_segments(segments: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """The ids of the segments, int64 (n,); UserError, which begins with `name`, when one is no id or occurs twice."""
    ids = [segment.get("id") for segment in segments]
    seen: set[int] = set()
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_ID:
            raise UserError(
                f"{name}: {value!r} is no id of a segment: they are whole numbers from 1 to {MAX_ID}, and 0 is void"
            )
        if value in seen:
            raise UserError(f"{name}: segments_info holds segment id {value} twice. Give every segment its own id")
        seen.add(value)
    return np.array(ids, np.int64)


def check_pixels(areas: np.ndarray, stray: np.ndarray, segment_ids: np.ndarray, name: str) -> None:
    """UserError unless all ids of a map are segments, and all segments are in the map.

    Args:
        areas: pixels of each segment (n,). stray: ids in the map that are neither void nor a segment.
    """
    if len(stray):
        raise UserError(
            f"{name}: id {int(stray[0])} is in the map but not in segments_info ({len(np.unique(stray))} such ids). List every "
            "segment of the map; id 0 is for pixels without one"
        )
    if len(areas) and not areas.all():
        raise UserError(
            f"{name}: segment id {int(segment_ids[int(np.argmin(areas))])} is in segments_info but has no pixel in the map. "
            "Leave out segments without pixels"
        )


def write_panoptic(
    png_dir: str | Path,
    json_path: str | Path,
    predictions: Iterable[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes panoptic maps as a COCO panoptic json and a folder of PNGs, one picture at a time; the json comes last.

    Besides what `predictions` give, the json holds size of each picture and area, box (x, y, width, height) and iscrowd = 0 of
    each segment, so that with `categories` it is a complete ground-truth file.

    Args:
        predictions: of each picture ``dict(image_id, file_name, ids, segments_info)``: the name of the picture or of its PNG
            (a ``png_name``, where given, names the PNG otherwise), the segment id of every pixel (integers (H, W), 0 = void),
            and the segments, ``dict(id, category_id, ...)``; other keys of a segment, such as a score, are kept.
        categories: the json's ``dict(id, name, isthing, ...)``.

    Raises:
        UserError: ids and segments of a picture do not fit together; names the picture.
    """
    png_dir, json_path = Path(png_dir), Path(json_path)
    png_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for prediction in predictions:
        ids, name = np.asarray(prediction["ids"]), f"image id {prediction['image_id']}"
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise UserError(f"{name}: panoptic ids must be whole numbers (H, W), got {ids.dtype} {ids.shape}")
        png = Path(prediction.get("png_name") or prediction["file_name"]).with_suffix(".png")
        segments = _described(prediction["segments_info"], ids, name)
        (png_dir / png).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids_to_rgb(ids)).save(png_dir / png)
        images.append(
            {
                "id": prediction["image_id"],
                "file_name": prediction["file_name"],
                "height": ids.shape[0],
                "width": ids.shape[1],
            }
        )
        annotations.append({"image_id": prediction["image_id"], "file_name": str(png), "segments_info": segments})
    json_path.parent.mkdir(parents=True, exist_ok=True)
    draft = json_path.with_name(f".{json_path.name}.{os.getpid()}")
    content = {"images": images, "annotations": annotations, "categories": [dict(category) for category in categories]}
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(json_path)


def _described(segments: Sequence[Mapping[str, Any]], ids: np.ndarray, name: str) -> list[dict[str, Any]]:
    """The segments with their area and box in the map `ids` (H, W)."""
    from scipy.ndimage import find_objects

    segment_ids = check_segments(segments, name)
    position = segment_positions(ids, segment_ids)
    areas = np.bincount(position.reshape(-1), minlength=len(segments) + 2)[: len(segments)]
    check_pixels(areas, ids[position > len(segments)], segment_ids, name)
    described = []
    for segment, area, (rows, columns) in zip(segments, areas.tolist(), find_objects(position + 1)):
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        described.append(
            {"iscrowd": 0, **segment, "id": int(segment["id"]), "category_id": int(segment["category_id"])}
            | {"area": area, "bbox": box}
        )
    return described
