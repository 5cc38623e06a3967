"""COCO-style detection data."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from mmvit.data.annotations import CocoAnnotations, read_coco
from mmvit.data.base import PictureDataset
from mmvit.data.classes import palette_for
from mmvit.data.files import missing_files
from mmvit.data.folder import find_image_dir
from mmvit.errors import UserError
from mmvit.registry import DATASETS


@DATASETS.register_module()
class CocoDetection(PictureDataset):
    """Pictures with boxes (and instance masks) from a COCO annotation file.

    ``dataset[(index, seed)]`` is the sample of a seed (see `PictureDataset`). Label k is class
    ``metainfo["classes"][k]`` with category id ``cat_ids[k]``; the file's ids may start at 0 or 1 and have gaps. Crowd
    regions and boxes without extent inside their picture are left out (the metric reads crowds from the file); how many is
    logged once.

    Args:
        ann_file: COCO json with 'images', 'annotations', 'categories'.
        img_dir: folder that 'file_name' is relative to. None: looked for beside the annotation file.
        pipeline: transforms, as config dicts or callables ``sample -> sample``.
        classes: names to use, which also fixes the label order. None: all of the file's, sorted by category id.
        test_mode: data for evaluation: a file without annotations is accepted.
        filter_empty: leave out pictures without boxes when training (RT-DETR keeps them).
        with_mask: give the pipeline the objects' segmentations.

    Raises:
        UserError: on anything wrong with the file, the classes or the folder.
    """

    def __init__(
        self,
        ann_file: str | Path,
        img_dir: str | Path | None = None,
        pipeline: Sequence[dict | Callable] = (),
        classes: Sequence[str] | None = None,
        test_mode: bool = False,
        filter_empty: bool = False,
        with_mask: bool = False,
    ) -> None:
        self.annotations = read_coco(ann_file, with_segmentations=with_mask)
        self.ann_file = str(ann_file)
        self.img_dir = _existing_folder(img_dir, self.annotations) if img_dir is not None else find_image_dir(self.annotations)
        self.test_mode = test_mode
        self.with_mask = with_mask

        chosen = self.annotations.select_classes(classes)
        self.cat_ids = [self.annotations.cat_ids[i] for i in chosen]
        names = tuple(self.annotations.classes[i] for i in chosen)
        super().__init__(pipeline, {"classes": names, "palette": palette_for(names), "cat_ids": list(self.cat_ids)})
        self._labels = np.full(len(self.annotations.classes), -1, dtype=np.int64)
        self._labels[list(chosen)] = np.arange(len(chosen))
        self._boxes = self.annotations.clipped_boxes().astype(np.float32)
        self._usable = self._find_usable()
        self._images = self._choose_images(filter_empty and not test_mode)

    def __len__(self) -> int:
        return len(self._images)

    def _sample(self, index: int) -> dict:
        """Where the picture lies and its ``instances`` (bbox xyxy, label, segmentation)."""
        image = self._images[index]
        source = self.annotations
        height, width = source.sizes[image].tolist()
        return {
            "img_id": int(source.image_ids[image]),
            "img_path": self.image_path(index),
            "height": height,
            "width": width,
            "ann_file": self.ann_file,
            "instances": [self._instance(i) for i in self._instances_of(image)],
        }

    def image_path(self, index: int) -> str:
        return os.path.join(self.img_dir, self.annotations.file_names[self._images[index]])

    def check(self) -> None:
        """The checks that need the image folder, without opening a picture: do all files exist? Seconds for COCO.

        Raises:
            UserError: naming the first missing files and the folder searched.
        """
        missing = missing_files([self.image_path(index) for index in range(len(self))])
        if missing:
            shown = "".join(f"\n  {path}" for path in missing[:5])
            raise UserError(
                f"{self.ann_file}: {len(missing)} of {len(self)} pictures are missing in {self.img_dir}, first:{shown}\n"
                "Copy them there, correct img_dir, or remove their entries from 'images' and 'annotations'"
            )

    def _instances_of(self, image: int) -> np.ndarray:
        start, stop = self.annotations.starts[image], self.annotations.starts[image + 1]
        return start + np.flatnonzero(self._usable[start:stop])

    def _instance(self, position: int) -> dict:
        instance = {"bbox": self._boxes[position], "label": int(self._labels[self.annotations.class_index[position]])}
        if self.with_mask:
            instance.update(
                segmentation=self.annotations.segmentations[position], ann_id=int(self.annotations.ann_ids[position])
            )
        return instance

    def _find_usable(self) -> np.ndarray:
        """Which annotations are objects of the chosen classes, bool (A,). Logs what is left out."""
        source = self.annotations
        extent = self._boxes[:, 2:] - self._boxes[:, :2]
        chosen = self._labels[source.class_index] >= 0
        invalid = chosen & ~source.crowd & (extent <= 0).any(axis=1)
        usable = chosen & ~source.crowd & ~invalid
        if invalid.any():
            print_log(
                f"{self.ann_file}: left out {int(invalid.sum())} of {len(invalid)} boxes without extent inside their picture, "
                f"first: annotation id {int(source.ann_ids[np.flatnonzero(invalid)[0]])}",
                "current",
                logging.WARNING,
            )
        if not self.test_mode and not usable.any():
            raise UserError(
                f"{self.ann_file}: no usable annotation ({len(usable)} in the file, {int(source.crowd.sum())} of them crowds"
                f"{'' if chosen.any() or not len(chosen) else ', none of the chosen classes'}). Training needs at least one box"
            )
        return usable

    def _choose_images(self, filter_empty: bool) -> np.ndarray:
        """Positions in the file of the pictures in use, int64."""
        images = np.arange(len(self.annotations.image_ids))
        if filter_empty:
            images = images[np.bincount(self.annotations.image_index[self._usable], minlength=len(images)) > 0]
        return images


def check_dataset(dataset: CocoDetection) -> None:
    """What can be checked before training in seconds; see `CocoDetection.check`. The file itself was checked when it was
    read.
    """
    dataset.check()


def _existing_folder(img_dir: str | Path, annotations: CocoAnnotations) -> str:
    if not os.path.isdir(img_dir):
        raise UserError(f"{img_dir}: no such image folder (for {annotations.path}). Correct img_dir or put the pictures there")
    return str(img_dir)
