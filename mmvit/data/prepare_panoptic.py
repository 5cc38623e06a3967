"""Panoptic and instance annotations of Cityscapes and ADE20K in COCO's formats, from what their downloads hold."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_tools

from mmvit.data.classes import ADE20K_CLASSES, ADE20K_PALETTE, ADE20K_THINGS
from mmvit.data.files import draft_folder, map_processes
from mmvit.data.masks import read_mask
from mmvit.data.panoptic_dataset import picture_name
from mmvit.data.panoptic_files import MAX_ID, PanopticFile, ids_to_rgb, read_colours, read_panoptic
from mmvit.errors import UserError

_SPLITS = ("train", "val")
_LEAST_AGREEMENT = 0.5  # share of the objects' pixels whose class in the semantic map is the object's


def write_json(path: Path, content: Any) -> None:
    """Writes a json file, which appears whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content), encoding="utf-8")
    os.replace(draft, path)


# --- instances ---------------------------------------------------------------------------------------------------------------


def instances_from_panoptic(
    panoptic_json: str | Path, out_json: str | Path, png_dir: str | Path | None = None, progress: bool = True
) -> int:
    """Writes the things of a COCO panoptic file as a COCO detection file with masks (RLE) and boxes.

    Categories keep their ids. Image ids that are no integers become 1, 2, ... in file order.

    Returns:
        The number of objects, crowds among them.
    """
    source = read_panoptic(panoptic_json, png_dir)
    things = [category for category in source.categories if category["isthing"]]
    work = functools.partial(_objects, source, {category["id"] for category in things})
    images, annotations = [], []
    for position, found in enumerate(map_processes(work, range(len(source.annotations)), "writing instances", progress)):
        picture, image_id = source.images[position], source.annotations[position]["image_id"]
        image_id = image_id if type(image_id) is int else position + 1
        images.append({**picture, "file_name": picture_name(picture["file_name"]), "id": image_id})
        annotations += [{"id": len(annotations) + k + 1, "image_id": image_id, **item} for k, item in enumerate(found)]
    write_json(Path(out_json), {"images": images, "annotations": annotations, "categories": things})
    return len(annotations)


def _objects(source: PanopticFile, things: set[int], position: int) -> list[dict]:
    """The COCO annotations of a picture's things, without ids."""
    annotation = source.annotations[position]
    ids = source.read_ids(annotation)
    found = []
    for segment in annotation["segments_info"]:
        if segment["category_id"] in things:
            rle = mask_tools.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
            found.append(
                {
                    "category_id": segment["category_id"],
                    "iscrowd": int(segment.get("iscrowd") or 0),
                    "area": int(mask_tools.area(rle)),
                    "bbox": mask_tools.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                }
            )
    return found


# --- Cityscapes --------------------------------------------------------------------------------------------------------------


def prepare_cityscapes(root: Path, progress: bool = True) -> None:
    """Writes ``cityscapes_panoptic_{train,val}_trainId.json``, the folders of their PNGs and ``instances_{train,val}.json``
    under ``root/gtFine``, where they are not there yet.

    Instance maps that are missing are drawn from the polygons. The categories are the 19 train ids.

    Raises:
        UserError: cityscapesscripts is not installed, or an annotation is damaged.
    """
    try:
        import cityscapesscripts.preparation.createPanopticImgs  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"converting Cityscapes needs cityscapesscripts ({error}): `pip install cityscapesscripts`, then run again"
        ) from None
    for split in _SPLITS:
        folder = root / "gtFine" / split
        polygons = sorted(folder.glob("*/*_gtFine_polygons.json"))
        todo = [path for path in polygons if not _instance_map(path).exists()]
        for _ in map_processes(_draw_instances, todo, f"instance maps of {split}", progress):
            pass
        target = root / "gtFine" / f"cityscapes_panoptic_{split}_trainId.json"
        if not _is_complete(target, len(list(folder.glob("*/*_gtFine_instanceIds.png")))):
            _cityscapes_panoptic(folder, target, progress)
        instances = root / "gtFine" / f"instances_{split}.json"
        if not instances.exists() or instances.stat().st_mtime_ns < target.stat().st_mtime_ns:
            instances_from_panoptic(target, instances, progress=progress)


def _is_complete(target: Path, count: int) -> bool:
    """Whether a panoptic file and the PNGs of its `count` pictures are there."""
    pngs = sum(1 for _ in target.with_suffix("").glob("*.png"))
    return target.exists() and pngs == count == len(read_panoptic(target).annotations)


def _instance_map(polygons: Path) -> Path:
    return polygons.with_name(polygons.name.replace("_polygons.json", "_instanceIds.png"))


def _draw_instances(path: Path) -> None:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage

    target = _instance_map(path)
    draft = target.with_name(f".{target.name}")
    try:
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        values = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
    except (Exception, SystemExit) as error:  # the script exits on a label that it does not know
        raise UserError(f"{path}: the polygons cannot be drawn ({error or type(error).__name__}). Get the file again") from None
    Image.fromarray(values).save(draft)
    os.replace(draft, target)


def _cityscapes_panoptic(folder: Path, target: Path, progress: bool) -> None:
    """Converts the instance maps of a split, city by city, each as the script would convert the whole split."""
    cities = sorted(city for city in folder.iterdir() if city.is_dir() and any(city.glob("*_gtFine_instanceIds.png")))
    maps = target.with_suffix("")
    with draft_folder(maps) as draft:
        work = functools.partial(_convert_city, draft)
        content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        for part in map_processes(work, cities, f"panoptic maps of {folder.name}", progress, per_process=1, chunk=1):
            content["images"] += part["images"]
            content["annotations"] += part["annotations"]
            content["categories"] = part["categories"]
        maps.mkdir(exist_ok=True)
        for path in draft.glob("*/out/*/*.png"):
            os.replace(path, maps / path.name)
    write_json(target, content)


def _convert_city(draft: Path, city: Path) -> dict[str, list]:
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    source, out = draft / city.name / "in", draft / city.name / "out"
    (source / city.parent.name).mkdir(parents=True)
    (source / city.parent.name / city.name).symlink_to(city.resolve(), target_is_directory=True)
    out.mkdir()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert2panoptic(str(source), str(out), useTrainId=True, setNames=[city.parent.name])
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{city}: its instance maps cannot be converted ({error or type(error).__name__}). Get gtFine_trainvaltest.zip "
            "again"
        ) from None
    return json.loads(next(out.glob("*.json")).read_text())


# --- ADE20K ------------------------------------------------------------------------------------------------------------------


def prepare_ade20k(root: Path, progress: bool = True) -> None:
    """Writes ``ade20k_panoptic_{train,val}.json``, the folders of their PNGs and ``ade20k_instance_{train,val}.json`` under
    `root`, where they are not there yet.

    Things are the objects of ``annotations_instance`` (red: number of the class, 1..100; green: number of the object), stuff is
    what ``annotations`` shows of the other 50 classes elsewhere; the rest is void. The category id of label k is k.

    Raises:
        UserError: a map is missing, damaged or does not fit the others.
    """
    for split, folder in zip(_SPLITS, ("training", "validation")):
        target, names = root / f"ade20k_panoptic_{split}.json", sorted((root / "annotations" / folder).glob("*.png"))
        if not _is_complete(target, len(names)):
            _ade20k_panoptic(root, names, folder, target, progress)
        instances = root / f"ade20k_instance_{split}.json"
        if not instances.exists() or instances.stat().st_mtime_ns < target.stat().st_mtime_ns:
            instances_from_panoptic(target, instances, progress=progress)


def ade20k_categories() -> list[dict]:
    """The 150 categories of ADE20K's panoptic files."""
    return [
        {"id": label, "name": name, "isthing": int(label in ADE20K_THINGS), "color": list(ADE20K_PALETTE[label])}
        for label, name in enumerate(ADE20K_CLASSES)
    ]


def _ade20k_panoptic(root: Path, names: Sequence[Path], folder: str, target: Path, progress: bool) -> None:
    maps = target.with_suffix("")
    maps.mkdir(exist_ok=True)
    work = functools.partial(_convert_ade20k, root / "annotations_instance" / folder, maps)
    images, annotations, pixels, agreeing = [], [], 0, 0
    for image, annotation, total, same in map_processes(work, names, f"panoptic maps of {folder}", progress):
        images.append(image)
        annotations.append(annotation)
        pixels, agreeing = pixels + total, agreeing + same
    if agreeing < _LEAST_AGREEMENT * pixels:
        raise UserError(
            f"{root / 'annotations_instance' / folder}: only {agreeing / pixels:.0%} of the objects' pixels have the class "
            f"that {root / 'annotations' / folder} gives them: the two do not belong together. Get annotations_instance.tar "
            "again"
        )
    write_json(target, {"images": images, "annotations": annotations, "categories": ade20k_categories()})


def _convert_ade20k(instances: Path, maps: Path, semantic: Path) -> tuple[dict, dict, int, int]:
    """Writes the map of a picture; its entries in 'images' and 'annotations', pixels of objects, those of the same class in
    the semantic map.
    """
    labels = read_mask(semantic).astype(np.int32) - 1  # -1 = none
    objects = read_colours(instances / semantic.name, str(semantic)).astype(np.int32)
    if objects.shape[:2] != labels.shape:
        raise UserError(
            f"{instances / semantic.name}: {objects.shape[1]}x{objects.shape[0]} pixels, but {semantic} has "
            f"{labels.shape[1]}x{labels.shape[0]} (width x height). Get the annotations again"
        )
    number, identity = objects[..., 0], objects[..., 1]
    if number.max() > len(ADE20K_THINGS) or labels.max() >= len(ADE20K_CLASSES):
        raise UserError(
            f"{instances / semantic.name} and {semantic}: class {number.max()} of {len(ADE20K_THINGS)}, {labels.max() + 1} of "
            f"{len(ADE20K_CLASSES)}. Get the annotations again"
        )
    thing = np.where((number > 0) & (identity > 0), np.append(-1, ADE20K_THINGS)[number], -1)
    is_object = thing >= 0
    stuff = np.where(is_object | np.isin(labels, ADE20K_THINGS), -1, labels)
    codes = np.where(is_object, (thing + 1) << 8 | identity, np.where(stuff >= 0, (stuff + 1) << 8, 0))
    image_id = int(re.sub(r"\D", "", semantic.stem))
    ids, segments = _numbered(codes)
    Image.fromarray(ids_to_rgb(ids)).save(maps / semantic.name)
    height, width = labels.shape
    return (
        {"id": image_id, "file_name": f"{semantic.stem}.jpg", "height": height, "width": width},
        {"image_id": image_id, "file_name": semantic.name, "segments_info": segments},
        int(is_object.sum()),
        int((labels == thing)[is_object].sum()),
    )


def _numbered(codes: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """Ids near the colour of their class, int32 (H, W), and the segments of a map of (label + 1) * 256 + object, 0 = void."""
    known, position, areas = np.unique(codes, return_inverse=True, return_counts=True)
    ids, segments = np.zeros(len(known), dtype=np.int32), []
    for place, (code, area) in enumerate(zip(known.tolist(), areas.tolist())):
        if code:
            label = (code >> 8) - 1
            red, green, blue = ADE20K_PALETTE[label]
            value = (red | green << 8 | blue << 16) or 1
            while value in ids:
                value = (value + 37) % MAX_ID or 1
            ids[place] = value
            segments.append({"id": value, "category_id": label, "area": area, "iscrowd": 0})
    numbers = ids[position.reshape(codes.shape)]
    for segment in segments:
        rows, columns = np.nonzero(numbers == segment["id"])
        left, top = int(columns.min()), int(rows.min())
        segment["bbox"] = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    return numbers, segments
