"""Panoptic segmentation data: pictures, the segments of each, and maps that show them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mmvit.data.base import PictureDataset
from mmvit.data.classes import palette_for
from mmvit.data.files import missing_files
from mmvit.data.folder import find_pictures
from mmvit.data.panoptic_files import PanopticFile, read_panoptic
from mmvit.errors import UserError, did_you_mean
from mmvit.registry import DATASETS

_MOST_CLASSES = 254  # that a semantic map of 8 bits can hold


@DATASETS.register_module()
class PanopticDataset(PictureDataset):
    """Pictures with the segments of a COCO panoptic file.

    ``dataset[(index, seed)]`` is the sample of a seed (see `PictureDataset`); pictures are in the order of the file's
    annotations. Label k is class ``metainfo["classes"][k]`` with category id ``metainfo["cat_ids"][k]``; the labels in
    ``metainfo["things"]`` are of things, the others of stuff.

    Args:
        ann_file: COCO panoptic json with 'images', 'annotations', 'categories'.
        png_dir: folder of its PNGs. None: named like the file, without ``.json``.
        img_dir: folder of the pictures. None: looked for beside the file.
        classes: names to use, which also fixes the label order; segments of other classes are void. None: all of the file's,
            sorted by category id.
        pipeline: transforms, as config dicts or callables ``sample -> sample``.
        test_mode: data for evaluation.

    Raises:
        UserError: on anything wrong with the file, the classes or the folders.
    """

    def __init__(
        self,
        ann_file: str | Path,
        png_dir: str | Path | None = None,
        img_dir: str | Path | None = None,
        classes: Sequence[str] | None = None,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
    ) -> None:
        self.source = read_panoptic(ann_file, png_dir)
        self.ann_file, self.png_dir = str(ann_file), str(self.source.png_dir)
        self.img_dir = str(find_pictures(self.source.path, pictures_of(self.source)) if img_dir is None else img_dir)
        if not os.path.isdir(self.img_dir):
            raise UserError(
                f"{img_dir}: no such folder of pictures (for {ann_file}). Correct img_dir or put the pictures there"
            )
        self.test_mode = test_mode
        if not len(self.source.annotations):
            raise UserError(f"{ann_file}: 'annotations' is empty. Give a file with at least one picture")
        categories = select_categories(self.source, classes)
        self._labels = {category["id"]: label for label, category in enumerate(categories)}
        super().__init__(pipeline, describe(categories))

    def __len__(self) -> int:
        return len(self.source.annotations)

    def image_path(self, index: int) -> str:
        return os.path.join(self.img_dir, self._picture(index)["name"])

    def pan_path(self, index: int) -> str:
        """Path of the PNG that shows the segments."""
        return str(self.source.png_path(self.source.annotations[index]))

    def _picture(self, index: int) -> dict:
        """``name`` below `img_dir`, ``height`` and ``width``."""
        picture = self.source.images[index]
        if picture is None:
            raise UserError(
                f"{self.ann_file}: 'images' does not give file_name, height and width of image id "
                f"{self.source.annotations[index]['image_id']!r}, which 'annotations' names. Add the entry"
            )
        return {**picture, "name": picture_name(picture["file_name"])}

    def _sample(self, index: int) -> dict:
        """Where picture and map lie, and the ``segments``: ``dict(id, label, iscrowd)``, label -1 for classes not in use."""
        annotation, picture = self.source.annotations[index], self._picture(index)
        return {
            "img_id": annotation["image_id"],
            "img_path": os.path.join(self.img_dir, picture["name"]),
            "pan_path": str(self.source.png_path(annotation)),
            "height": picture["height"],
            "width": picture["width"],
            "ann_file": self.ann_file,
            "segments": [self._segment(segment, annotation["image_id"]) for segment in annotation["segments_info"]],
        }

    def _segment(self, segment: dict, image_id: int | str) -> dict:
        label = self._labels.get(segment.get("category_id"))
        if label is None and not any(segment.get("category_id") == category["id"] for category in self.source.categories):
            raise UserError(
                f"{self.ann_file}: segment id {segment.get('id')} of image id {image_id!r} has category id "
                f"{segment.get('category_id')!r}, which 'categories' does not hold. Correct the file"
            )
        return {
            "id": segment.get("id"),
            "label": -1 if label is None else label,
            "iscrowd": int(segment.get("iscrowd") or 0),
        }

    def check(self) -> None:
        """Whether all pictures and maps are there, without opening them; UserError names the first that are not."""
        pictures = [self.image_path(index) for index in range(len(self))]
        maps = [str(self.source.png_path(annotation)) for annotation in self.source.annotations]
        for paths, folder, what in ((pictures, self.img_dir, "pictures"), (maps, self.png_dir, "panoptic maps")):
            if missing := missing_files(paths):
                shown = "".join(f"\n  {path}" for path in missing[:5])
                raise UserError(
                    f"{self.ann_file}: {len(missing)} of {len(paths)} {what} are missing in {folder}, first:{shown}\n"
                    "Copy them there, correct the folder, or remove their entries from the file"
                )


def select_categories(source: PanopticFile, classes: Sequence[str] | None = None) -> list[dict]:
    """The categories of the names `classes` in their order; None: all, sorted by id. UserError when a name is not there."""
    for category in source.categories:
        if "isthing" not in category:
            raise UserError(
                f"{source.path}: category {category['name']!r} has no 'isthing'. Write 1 for things, whose objects are told "
                "apart, 0 for stuff"
            )
    found = sorted(source.categories, key=lambda category: category["id"])
    if classes is not None:
        if isinstance(classes, str):
            raise UserError(f"classes must be a list of names, got the single text {classes!r}. Write [{classes!r}]")
        by_name = {category["name"]: category for category in found}
        for name in classes:
            if name not in by_name:
                raise UserError(
                    f"{source.path}: class {name!r} is not among the file's categories.{did_you_mean(name, by_name)} Correct "
                    "the class list, or leave it out to take the file's"
                )
        found = [by_name[name] for name in classes]
    if not found or len(found) > _MOST_CLASSES:
        raise UserError(f"{source.path}: {len(found)} categories; 1 to {_MOST_CLASSES} are possible. Correct 'categories'")
    for key in ("id", "name"):
        values = [category[key] for category in found]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise UserError(f"{source.path}: two categories have the {key} {twice!r}. Give every category its own")
    return found


def describe(categories: Sequence[dict]) -> dict:
    """The metainfo of a data set with these categories: classes, palette, things and cat_ids."""
    names = tuple(category["name"] for category in categories)
    coloured = all(len(category.get("color") or ()) == 3 for category in categories)
    return {
        "classes": names,
        "palette": [tuple(category["color"]) for category in categories] if coloured else palette_for(names),
        "things": tuple(label for label, category in enumerate(categories) if category["isthing"]),
        "cat_ids": [category["id"] for category in categories],
    }


def picture_name(file_name: str) -> str:
    """Path of a picture below the folder of the pictures, given 'file_name'.

    The files that cityscapesscripts writes name ``aachen_000000_000019_gtFine_leftImg8bit.png`` what is
    ``aachen/aachen_000000_000019_leftImg8bit.png``.
    """
    if not file_name.endswith("_gtFine_leftImg8bit.png"):
        return file_name
    return f"{file_name.partition('_')[0]}/{file_name.replace('_gtFine_', '_')}"


def pictures_of(source: PanopticFile) -> list[str]:
    """Paths of a file's pictures below their folder."""
    return [picture_name(image["file_name"]) for image in source.images if image is not None]
