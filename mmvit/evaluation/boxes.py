"""Average precision of boxes and of masks as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval.core import mask as mask_api
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from mmvit.data.annotations import CocoAnnotations, read_coco
from mmvit.errors import UserError

#: Names of the twelve COCO figures, in pycocotools' order.
STAT_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l", "AR_1", "AR_10", "AR_100", "AR_s", "AR_m", "AR_l")


@dataclass(frozen=True)
class ApScores:
    """``stats``: the twelve COCO figures by `STAT_NAMES`, 0..1. ``class_ap``: AP of each category id.

    A figure is -1 where there is nothing to find (no object of that size, of that class, or at all), 0 where there is and
    nothing was.
    """

    stats: dict[str, float]
    class_ap: dict[int, float]


def evaluate_boxes(
    ground_truth: CocoAnnotations | str | Path,
    detections: Iterable[Mapping],
    image_ids: Sequence[int] | None = None,
    cat_ids: Sequence[int] | None = None,
) -> ApScores:
    """COCO box AP and AR of `detections`, equal to pycocotools' (at most 1, 10, 100 detections a picture and class).

    Args:
        ground_truth: a COCO file or what `read_coco` made of it. detections: ``dict(image_id, category_id, bbox=[x, y,
            width, height], score)`` each, in the order that breaks ties of score.
        image_ids: the pictures that count. None: all of the file.
        cat_ids: the category ids that count. None: all of the file.

    Annotation ids play no part: pycocotools takes an object with id 0 for one that is never found, here it counts like any
    other.

    Raises:
        UserError: a detection names a picture that the file does not hold.
    """
    source = ground_truth if isinstance(ground_truth, CocoAnnotations) else read_coco(ground_truth)
    return _evaluate(source, detections, image_ids, cat_ids, "bbox")


def evaluate_masks(
    ground_truth: CocoAnnotations | str | Path,
    detections: Iterable[Mapping],
    image_ids: Sequence[int] | None = None,
    cat_ids: Sequence[int] | None = None,
) -> ApScores:
    """COCO mask AP and AR, equal to pycocotools'; as `evaluate_boxes`, but for what is in `detections`.

    Args:
        ground_truth: as there, read with segmentations (polygons or RLE).
        detections: ``dict(image_id, category_id, segmentation=RLE, score)``, the RLE a ``dict(size=[height, width], counts)``
            of the picture's size with compressed counts (bytes or str). Their size classes are by the area of the mask.

    Raises:
        UserError: as there; also an object of the file has no segmentation, or a mask is no RLE of the picture's size.
    """
    source = ground_truth if isinstance(ground_truth, CocoAnnotations) else read_coco(ground_truth, with_segmentations=True)
    if source.segmentations is None:
        raise ValueError(f"{source.path}: read_coco(path, with_segmentations=True) is needed to evaluate masks")
    return _evaluate(source, detections, image_ids, cat_ids, "segm")


def _evaluate(
    source: CocoAnnotations,
    detections: Iterable[Mapping],
    image_ids: Sequence[int] | None,
    cat_ids: Sequence[int] | None,
    kind: str,
) -> ApScores:
    """AP of boxes ("bbox") or masks ("segm")."""
    image_ids = source.image_ids.tolist() if image_ids is None else sorted({int(i) for i in image_ids})
    cat_ids = list(source.cat_ids) if cat_ids is None else sorted({int(i) for i in cat_ids})
    unknown = sorted(set(image_ids) - set(source.image_ids.tolist()))
    if unknown:
        raise UserError(
            f"{source.path}: does not hold image id {unknown[0]} ({len(unknown)} such ids), for which there are predictions. "
            "Evaluate against the file that the dataset reads"
        )
    results = _detection_dicts(detections, set(image_ids), source, kind)
    truth = COCO(_ground_truth_dict(source, image_ids, kind), print_function=_silent)
    found = COCO(
        {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": results},
        print_function=_silent,
    )
    evaluator = COCOeval_faster(truth, found, iouType=kind, print_function=_silent)
    evaluator.params.imgIds = image_ids
    evaluator.params.catIds = cat_ids
    if not image_ids or not cat_ids:
        return ApScores(dict.fromkeys(STAT_NAMES, -1.0), dict.fromkeys(cat_ids, -1.0))
    evaluator.run()
    # (10 IoUs, 101 recalls, classes), all sizes, 100 detections
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    class_ap = {cat_id: _mean_of_defined(precision[:, :, k]) for k, cat_id in enumerate(cat_ids)}
    return ApScores({name: float(value) for name, value in zip(STAT_NAMES, evaluator.stats)}, class_ap)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _ground_truth_dict(source: CocoAnnotations, image_ids: Sequence[int], kind: str) -> dict:
    """The annotations of the pictures that count, as a COCO dict, numbered from 1."""
    counted = np.isin(source.image_ids, image_ids)
    chosen = np.flatnonzero(counted[source.image_index])
    images = [
        {"id": int(source.image_ids[i]), "height": int(source.sizes[i, 0]), "width": int(source.sizes[i, 1])}
        for i in np.flatnonzero(counted)
    ]
    categories = [{"id": cat_id, "name": name} for cat_id, name in zip(source.cat_ids, source.classes)]
    columns = zip(
        source.image_ids[source.image_index[chosen]].tolist(),
        np.array(source.cat_ids)[source.class_index[chosen]].tolist(),
        source.boxes[chosen].tolist(),
        source.areas[chosen].tolist(),
        source.crowd[chosen].astype(int).tolist(),
    )
    annotations = [
        {"id": number, "image_id": image_id, "category_id": cat_id, "bbox": box, "area": area, "iscrowd": crowd}
        for number, (image_id, cat_id, box, area, crowd) in enumerate(columns, start=1)
    ]
    if kind == "segm":
        for position, annotation in zip(chosen.tolist(), annotations):
            annotation["segmentation"] = _segmentation(source, position)
    return {"images": images, "annotations": annotations, "categories": categories}


def _segmentation(source: CocoAnnotations, position: int) -> Any:
    """The polygons or the RLE of an object of the file; UserError when it has none that can be drawn."""
    shape, size = source.segmentations[position], source.sizes[source.image_index[position]].tolist()
    if isinstance(shape, dict) and "counts" in shape and list(shape.get("size", ())) == size:
        return shape
    if isinstance(shape, list) and shape and all(isinstance(part, list) and len(part) >= 6 for part in shape):
        return shape
    raise UserError(
        f"{source.path}: 'segmentation' of annotation id {source.ann_ids[position]} (image id "
        f"{source.image_ids[source.image_index[position]]}) is neither a list of polygons, each of three points or more, nor "
        f"an RLE of the picture's size {size}. Write one of the two, or evaluate boxes only"
    )


def _detection_dicts(detections: Iterable[Mapping], image_ids: set[int], source: CocoAnnotations, kind: str) -> list[dict]:
    sizes = dict(zip(source.image_ids.tolist(), source.sizes.tolist()))
    results = []
    for detection in detections:
        if detection["image_id"] not in sizes:
            raise UserError(
                f"{source.path}: does not hold image id {detection['image_id']}, for which there are detections. Evaluate "
                "against the file that the dataset reads"
            )
        if detection["image_id"] in image_ids:
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": detection["image_id"],
                    "category_id": detection["category_id"],
                    "score": float(detection["score"]),
                    "iscrowd": 0,
                    **(_box(detection) if kind == "bbox" else _mask(detection, sizes[detection["image_id"]])),
                }
            )
    return results


def _box(detection: Mapping) -> dict:
    box = [float(number) for number in detection["bbox"]]
    return {"bbox": box, "area": box[2] * box[3]}


def _mask(detection: Mapping, size: list[int]) -> dict:
    mask = detection["segmentation"]
    if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), (bytes, str)) or list(mask["size"]) != size:
        given = mask.get("size") if isinstance(mask, Mapping) else type(mask).__name__
        raise UserError(
            f"image id {detection['image_id']}: a predicted mask (size {given}) is no compressed RLE of the picture's (height, "
            f"width) {tuple(size)}. Predict masks at the original size, encoded by pycocotools.mask.encode"
        )
    shape = {"size": size, "counts": mask["counts"]}
    return {"segmentation": shape, "area": float(mask_api.area(shape))}


def _silent(*args: object) -> None:
    """Takes the place of the evaluator's print function."""
