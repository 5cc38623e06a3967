"""COCO panoptic annotations as semantic masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmvit.data.annotations import load_json
from mmvit.data.files import draft_folder, for_each, link_or_copy, require_new
from mmvit.data.images import read_image
from mmvit.data.masks import IGNORE
from mmvit.errors import UserError, did_you_mean

_HINT = "Give a COCO panoptic file, such as panoptic_val2017.json, with 'images', 'annotations' and 'categories'"


def semantic_from_panoptic(
    panoptic_json: str | Path, png_dir: str | Path, img_dir: str | Path, out_dir: str | Path, progress: bool = True
) -> tuple[str, ...]:
    """Writes the data of a COCO panoptic file as semantic segmentation data: ``images/``, ``masks/*.png`` and ``classes.txt``.

    The masks hold the positions of the categories in the file, 255 where there is no segment. Pictures are linked, or copied
    where links are impossible. The folder appears whole or not at all.

    Args:
        panoptic_json: the file.
        png_dir: folder of its PNGs, where a segment's pixels are R + 256 G + 65536 B = its id.
        img_dir: folder of the pictures.
        out_dir: folder to write; must not exist or be empty.

    Returns:
        The names of the classes.

    Raises:
        UserError: something is missing or does not fit together; names the file and the image.
    """
    panoptic_json, out_dir = Path(panoptic_json), Path(out_dir)
    images, annotations, categories = _read(panoptic_json)
    require_new(out_dir)
    labels = {category["id"]: label for label, category in enumerate(categories)}

    def convert(annotation: dict) -> None:
        picture = images.get(annotation["image_id"])
        if picture is None:
            raise UserError(f"{panoptic_json}: an annotation names image id {annotation['image_id']}, which 'images' lacks")
        where = f"{panoptic_json}: image id {picture['id']} ({picture['file_name']})"
        source = Path(img_dir) / picture["file_name"]
        if not source.is_file():
            raise UserError(f"{where}: the picture {source} does not exist. Correct the folder of the pictures (--images)")
        mask = _semantic(annotation, picture, labels, Path(png_dir), where)
        Image.fromarray(mask).save(draft / "masks" / f"{source.stem}.png")
        link_or_copy(source, draft / "images" / source.name)

    with draft_folder(out_dir) as draft:
        for folder in ("images", "masks"):
            (draft / folder).mkdir()
        for _ in for_each(convert, annotations, "converting panoptic maps", progress):
            pass
        (draft / "classes.txt").write_text("".join(f"{_line(category)}\n" for category in categories), encoding="utf-8")
        draft.rename(out_dir)  # replaces an empty folder too
    return tuple(category["name"] for category in categories)


def _read(path: Path) -> tuple[dict[int, dict], list[dict], list[dict]]:
    """(images by id, annotations, categories) of a panoptic file."""
    if not path.is_file():
        raise UserError(f"{path}: no such panoptic file. {_HINT}")
    content = load_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            found = did_you_mean(key, content) if isinstance(content, dict) else ""
            raise UserError(f"{path}: the list {key!r} is missing or empty.{found} {_HINT}")
    if "segments_info" not in content["annotations"][0]:
        raise UserError(f"{path}: its annotations have no 'segments_info', so this is no panoptic file. {_HINT}")
    _require(path, content["images"], "images", ("id", "file_name", "height", "width"))
    _require(path, content["annotations"], "annotations", ("image_id", "file_name", "segments_info"))
    _require(path, content["categories"], "categories", ("id", "name"))
    stems = Counter(Path(image["file_name"]).stem for image in content["images"])
    if twice := next((stem for stem, count in stems.items() if count > 1), None):
        raise UserError(f"{path}: two pictures have the name {twice!r}. Give every picture its own name")
    if len(content["categories"]) > 254:
        raise UserError(f"{path}: {len(content['categories'])} categories; masks of 8 bits hold at most 254")
    return {image["id"]: image for image in content["images"]}, content["annotations"], content["categories"]


def _require(path: Path, items: Sequence[Any], section: str, keys: Sequence[str]) -> None:
    for position, item in enumerate(items):
        missing = [key for key in keys if not isinstance(item, dict) or key not in item]
        if missing:
            raise UserError(f"{path}: entry {position} of {section!r} has no {missing[0]!r}. {_HINT}")


def _semantic(annotation: dict, picture: dict, labels: dict[int, int], png_dir: Path, where: str) -> np.ndarray:
    """The class of every pixel, uint8 (H, W), 255 where there is no segment."""
    path = png_dir / annotation["file_name"]
    if not path.is_file():
        raise UserError(f"{where}: its panoptic map {path} does not exist. Correct the folder of the maps (--panoptic-dir)")
    rgb = read_image(path, upright=False).astype(np.int32)
    if rgb.shape[:2] != (picture["height"], picture["width"]):
        raise UserError(
            f"{where}: the map {path} is {rgb.shape[1]}x{rgb.shape[0]} pixels, the picture {picture['width']}x"
            f"{picture['height']} (width x height). Get the map of this picture"
        )
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    classes = {0: IGNORE}
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in labels:
            raise UserError(f"{where}: segment {segment['id']} has category id {segment['category_id']}, not in 'categories'")
        classes[segment["id"]] = labels[segment["category_id"]]
    known = np.array(sorted(classes))
    position = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    unknown = known[position] != ids
    if unknown.any():
        raise UserError(
            f"{where}: {int(unknown.sum())} pixels of {path} have ids that are no segment, first {int(ids[unknown][0])}. "
            "Get the map that belongs to this file"
        )
    return np.array([classes[identity] for identity in known], dtype=np.uint8)[position]


def _line(category: dict) -> str:
    """The category's line of a names file: its name, and its colour where it has one."""
    return " ".join([category["name"], *map(str, category.get("color", ()))])
