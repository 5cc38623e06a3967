"""Loading, augmentation and packing of detection samples; those of semantic segmentation are in `transforms_semantic`.

Every transform is a callable ``sample -> sample`` on the dict that the dataset makes; see `LoadImage`, `LoadAnnotations`
and `PackDetInputs` for its keys. Random ones draw from ``sample["rng"]`` only. Boxes, labels and masks stay in step: boxes
are float32 (n, 4) xyxy in pixels of ``img``, masks `InstanceMasks` (n, H, W), the semantic map ``gt_sem_seg`` uint8 (H, W),
the panoptic map ``pan_ids`` int32 (H, W). `crop_sample`, `resize_sample` and `Flip` carry all of them.

The augmentations have the semantics of torchvision's v2 transforms, which RT-DETR was trained with (spec: RT-DETR, arXiv
2304.08069, official PyTorch configuration).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from PIL import Image

from mmvit.data.images import read_image
from mmvit.data.instance_masks import InstanceMasks
from mmvit.data.structures import DataSample
from mmvit.errors import UserError, did_you_mean
from mmvit.registry import TRANSFORMS

META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip")


@TRANSFORMS.register_module()
class LoadImage:
    """Reads ``img_path`` into ``img``, uint8 (H, W, 3) RGB in stored orientation (see `read_image`).

    Sets ``ori_shape``, ``img_shape`` (h, w), ``scale_factor`` (w, h) and ``flip``. When the sample says the size to expect
    (``height``, ``width``), another size is a `UserError`: its boxes would be wrong.
    """

    def __call__(self, sample: dict) -> dict:
        image = read_image(sample["img_path"], upright=False)
        height, width = image.shape[:2]
        if "height" in sample and (height, width) != (sample["height"], sample["width"]):
            turned = (width, height) == (sample["height"], sample["width"])
            raise UserError(
                f"{sample['img_path']}: the picture is {width}x{height} pixels, but "
                f"{sample.get('ann_file', 'its annotation')} says "
                f"{sample['width']}x{sample['height']} (width x height, image id {sample.get('img_id')}). "
                + (
                    "The two are swapped: it was annotated on the EXIF-rotated picture; store the pictures rotated and "
                    "without EXIF"
                    if turned
                    else "Correct 'width' and 'height' and check that the boxes refer to this picture"
                )
            )
        sample.update(
            img=image,
            height=height,
            width=width,
            ori_shape=(height, width),
            img_shape=(height, width),
            scale_factor=(1.0, 1.0),
            flip=False,
        )
        return sample


@TRANSFORMS.register_module()
class LoadAnnotations:
    """Turns ``instances`` (dicts with ``bbox`` xyxy, ``label``, ``segmentation``) into ``gt_bboxes`` float32 (n, 4) and
    ``gt_labels`` int64 (n,); with `with_mask` also ``gt_masks``, `InstanceMasks` from polygons or RLE. Needs `LoadImage` before
    it for masks.
    """

    def __init__(self, with_mask: bool = False) -> None:
        self.with_mask = with_mask

    def __call__(self, sample: dict) -> dict:
        instances = sample.pop("instances")
        sample["gt_bboxes"] = np.array([item["bbox"] for item in instances], dtype=np.float32).reshape(-1, 4)
        sample["gt_labels"] = np.array([item["label"] for item in instances], dtype=np.int64)
        if self.with_mask:
            ann_file = sample.get("ann_file", "annotations")
            sample["gt_masks"] = InstanceMasks.read(instances, sample["ori_shape"], ann_file, sample.get("img_id"))
        return sample


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """uint8 (H, W, 3) times `factor`, saturating."""
    return cv2.LUT(image, _table(np.arange(256) * factor))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` * image + (1 - `factor`) * the image's mean grey, saturating."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return cv2.LUT(image, _table(np.arange(256) * factor + mean * (1 - factor)))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` * image + (1 - `factor`) * each pixel's grey, saturating."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def adjust_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Hue moved by `turn` of the colour circle, -0.5..0.5; computed in float32."""
    hsv = cv2.cvtColor(np.multiply(image, np.float32(1 / 255)), cv2.COLOR_RGB2HSV)
    hue = hsv[..., 0]  # degrees
    hue += 360 * turn
    hue[hue < 0] += 360
    hue[hue >= 360] -= 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class PhotometricDistort:
    """Brightness, contrast, saturation, hue and channel order, each changed with probability `p` (torchvision's
    RandomPhotometricDistort). Contrast comes before saturation and hue or after them, with equal probability.

    As in torchvision: brightness scales the pixels; contrast blends with the mean grey, saturation with the grey of each pixel;
    hue turns by a fraction of the colour circle. Every step rounds to uint8.
    """

    LIMITS = {"brightness": (0.0, float("inf")), "hue": (-0.5, 0.5)}  # of the arguments
    PERMUTES = True  # the channels, with probability `p`
    adjust_brightness = staticmethod(adjust_brightness)
    adjust_contrast = staticmethod(adjust_contrast)
    adjust_saturation = staticmethod(adjust_saturation)
    adjust_hue = staticmethod(adjust_hue)

    def __init__(
        self,
        p: float = 0.5,
        brightness: Sequence[float] = (0.875, 1.125),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-0.05, 0.05),
    ) -> None:
        self.p = probability(p)
        self.brightness = interval("brightness", brightness, *self.LIMITS["brightness"])
        self.contrast = interval("contrast", contrast, 0.0)
        self.saturation = interval("saturation", saturation, 0.0)
        self.hue = interval("hue", hue, *self.LIMITS["hue"])

    def __call__(self, sample: dict) -> dict:
        rng, image = sample["rng"], sample["img"]
        use_brightness, use_contrast, use_saturation, use_hue, permute = rng.random(5) < self.p
        contrast_first = rng.random() < 0.5
        brightness, contrast, saturation, hue = (
            rng.uniform(*bounds) for bounds in (self.brightness, self.contrast, self.saturation, self.hue)
        )
        if use_brightness:
            image = self.adjust_brightness(image, brightness)
        if use_contrast and contrast_first:
            image = self.adjust_contrast(image, contrast)
        if use_saturation:
            image = self.adjust_saturation(image, saturation)
        if use_hue:
            image = self.adjust_hue(image, hue)
        if use_contrast and not contrast_first:
            image = self.adjust_contrast(image, contrast)
        if permute and self.PERMUTES:
            image = np.ascontiguousarray(image[..., rng.permutation(3)])
        sample["img"] = image
        return sample


@TRANSFORMS.register_module()
class ZoomOut:
    """With probability `p`, puts the picture at a random place of a canvas, `side_range` times as high and wide (one
    factor), filled with `fill` (torchvision's RandomZoomOut).
    """

    def __init__(self, p: float = 0.5, side_range: Sequence[float] = (1.0, 4.0), fill: int = 0) -> None:
        self.p = probability(p)
        self.side_range = interval("side_range", side_range, 1.0)
        if not (isinstance(fill, Real) and 0 <= fill <= 255):
            raise UserError(f"ZoomOut: fill must lie in 0..255, got {fill!r}")
        self.fill = int(fill)

    def __call__(self, sample: dict) -> dict:
        rng = sample["rng"]
        if rng.random() >= self.p:
            return sample
        height, width = sample["img"].shape[:2]
        factor = rng.uniform(*self.side_range)
        canvas_height, canvas_width = int(height * factor), int(width * factor)
        left, top = ((np.array([canvas_width - width, canvas_height - height]) * rng.random(2)).astype(int)).tolist()
        image = np.full((canvas_height, canvas_width, 3), self.fill, dtype=np.uint8)
        image[top : top + height, left : left + width] = sample["img"]
        sample.update(img=image, img_shape=image.shape[:2])
        if "gt_bboxes" in sample:
            sample["gt_bboxes"] = sample["gt_bboxes"] + np.array([left, top, left, top], dtype=np.float32)
        if "gt_masks" in sample:
            sample["gt_masks"] = InstanceMasks.of(sample["gt_masks"]).window(-top, -left, canvas_height, canvas_width)
        return sample


@TRANSFORMS.register_module()
class IoUCrop:
    """With probability `p`, crops so that some object is covered with at least a random IoU (torchvision's RandomIoUCrop,
    from SSD).

    Draws a least IoU from `options`; 1 or more means no crop. Then up to `trials` crops of height and width between
    `min_scale` and `max_scale` of the picture, width/height between `min_aspect_ratio` and `max_aspect_ratio`: the first
    that holds the centre of a box, and overlaps such a box with the least IoU, is taken; boxes with their centre outside
    are dropped, the others clipped. After `trials` misses the IoU is drawn again. A picture without boxes stays as it is.
    """

    def __init__(
        self,
        p: float = 0.8,
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_aspect_ratio: float = 0.5,
        max_aspect_ratio: float = 2.0,
        options: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        trials: int = 40,
    ) -> None:
        self.p = probability(p)
        self.scale = interval("min_scale, max_scale", (min_scale, max_scale), 0.0, 1.0)
        self.aspect = interval("min_aspect_ratio, max_aspect_ratio", (min_aspect_ratio, max_aspect_ratio), 0.0)
        if not len(options) or max(options) < 1.0 or min(options) < 0:
            raise UserError(
                f"IoUCrop: options must be IoUs >= 0, one of them 1 or more (no crop, which ends the search), got {options!r}"
            )
        self.options = tuple(float(option) for option in options)
        if not isinstance(trials, int) or trials < 1:
            raise UserError(f"IoUCrop: trials must be a positive integer, got {trials!r}")
        self.trials = trials

    def __call__(self, sample: dict) -> dict:
        rng = sample["rng"]
        if rng.random() >= self.p or not len(sample["gt_bboxes"]):
            return sample
        while True:
            least = self.options[rng.integers(len(self.options))]
            if least >= 1.0:
                return sample
            crop = self._find_crop(sample["img"].shape, sample["gt_bboxes"], least, rng)
            if crop is not None:
                return _crop(sample, crop)

    def _find_crop(
        self, shape: tuple[int, ...], boxes: np.ndarray, least: float, rng: np.random.Generator
    ) -> np.ndarray | None:
        """Left, top, right, bottom of the first good one among `trials` random crops, int64 (4,)."""
        side = np.array([shape[1], shape[0]])  # (width, height)
        size = (side * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random((self.trials, 2)))).astype(int)
        corner = ((side - size) * rng.random((self.trials, 2))).astype(int)
        crops = np.concatenate([corner, corner + size], axis=1)[:, None]  # (trials, 1, 4)
        good = (
            (size > 0).all(axis=1) & (size[:, 0] >= self.aspect[0] * size[:, 1]) & (size[:, 0] <= self.aspect[1] * size[:, 1])
        )

        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((crops[..., :2] < centre) & (centre < crops[..., 2:])).all(axis=2)  # (trials, n)
        overlap = np.clip(np.minimum(crops[..., 2:], boxes[:, 2:]) - np.maximum(crops[..., :2], boxes[:, :2]), 0, None).prod(
            axis=2
        )
        union = size.prod(axis=1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - overlap
        iou = overlap / np.maximum(union, 1e-9)
        good &= (inside & (iou >= least)).any(axis=1)
        return crops[good.argmax(), 0] if good.any() else None


def _crop(sample: dict, crop: np.ndarray) -> dict:
    left, top, right, bottom = crop.tolist()
    boxes = sample["gt_bboxes"]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    _keep_objects(sample, ((centre > crop[:2]) & (centre < crop[2:])).all(axis=1))
    return crop_sample(sample, top, left, bottom - top, right - left)


def crop_sample(sample: dict, top: int, left: int, height: int, width: int) -> dict:
    """The window of the picture that begins at (`top`, `left`), or what the picture has of it, and all that is annotated on it.

    Boxes are clipped; objects whose box then has no extent are dropped.
    """
    rows, columns = slice(top, top + height), slice(left, left + width)
    image = sample["img"][rows, columns]
    sample.update(img=image, img_shape=image.shape[:2])
    for key in ("gt_sem_seg", "pan_ids"):
        if key in sample:
            sample[key] = sample[key][rows, columns]
    if "gt_masks" in sample:
        sample["gt_masks"] = InstanceMasks.of(sample["gt_masks"]).window(top, left, *image.shape[:2])
    if "gt_bboxes" in sample:
        boxes = sample["gt_bboxes"] - np.array([left, top, left, top], dtype=np.float32)
        boxes = sample["gt_bboxes"] = _clip(boxes, image.shape)
        _keep_objects(sample, (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    return sample


@TRANSFORMS.register_module()
class SanitizeBoxes:
    """Clips boxes to the picture and drops objects whose box is then less than `min_size` pixels wide or high (default 1), or
    whose mask, where there are masks, has no pixel.

    from_masks: boxes become those around the pixels of the masks, which are tighter after a crop.
    """

    def __init__(self, min_size: float = 1.0, from_masks: bool = False) -> None:
        if not (isinstance(min_size, Real) and min_size > 0):
            raise UserError(f"SanitizeBoxes: min_size must be above 0 pixels, got {min_size!r}")
        self.min_size = float(min_size)
        self.from_masks = from_masks

    def __call__(self, sample: dict) -> dict:
        if "gt_masks" in sample:
            masks = sample["gt_masks"] = InstanceMasks.of(sample["gt_masks"])
            if self.from_masks:
                sample["gt_bboxes"] = masks.boxes()
            _keep_objects(sample, masks.any())
        boxes = sample["gt_bboxes"] = _clip(sample["gt_bboxes"], sample["img"].shape)
        _keep_objects(sample, (boxes[:, 2:] - boxes[:, :2] >= self.min_size).all(axis=1))
        return sample


@TRANSFORMS.register_module()
class Flip:
    """With probability `p`, mirrors the picture left-right."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability(p)

    def __call__(self, sample: dict) -> dict:
        if sample["rng"].random() >= self.p:
            return sample
        image = sample["img"]
        sample.update(img=cv2.flip(image, 1), flip=not sample.get("flip", False))
        if "gt_bboxes" in sample:
            x1, y1, x2, y2 = sample["gt_bboxes"].T
            width = np.float32(image.shape[1])
            sample["gt_bboxes"] = np.stack([width - x2, y1, width - x1, y2], axis=1)
        if "gt_masks" in sample:
            sample["gt_masks"] = InstanceMasks.of(sample["gt_masks"]).flip()
        for key in ("gt_sem_seg", "pan_ids"):
            if key in sample:
                sample[key] = cv2.flip(sample[key], 1)
        return sample


@TRANSFORMS.register_module()
class Resize:
    """Resizes to `size` = (height, width), or an integer for both.

    keep_ratio: without distortion, as large as possible with the long side at most ``max(size)`` and the short side at most
        ``min(size)`` pixels, whichever of them is upright.
    oriented: with keep_ratio, the height is at most ``size[0]`` and the width at most ``size[1]``, for models that have an
        input of one size.
    interpolation: "nearest", "bilinear" and "bicubic" are Pillow's filters, which antialias when they shrink: bilinear is what
        the published RT-DETR figures were measured with. "cv2_bilinear" is OpenCV's, which does not: that of the published
        segmentation figures.
    Maps and masks use nearest neighbours; polygons are drawn at the new size. ``scale_factor`` (w, h) is multiplied by the
    change of size.
    """

    FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def __init__(
        self, size: int | Sequence[int], keep_ratio: bool = False, interpolation: str = "bilinear", oriented: bool = False
    ) -> None:
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise UserError(f"Resize: size must be (height, width) in whole pixels, got {size!r}")
        self.size = pair
        self.keep_ratio, self.oriented = keep_ratio, oriented
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        return resize_sample(sample, self._target(sample["img"].shape[:2]), self.interpolation)

    def _target(self, shape: tuple[int, int]) -> tuple[int, int]:
        if not self.keep_ratio:
            return self.size
        if self.oriented:
            return _scaled(shape, min(limit / side for limit, side in zip(self.size, shape)))
        return rescaled(shape, self.size)


def rescaled(shape: tuple[int, int], limits: Sequence[float]) -> tuple[int, int]:
    """(height, width) of a picture of `shape` (height, width) scaled to the largest size whose long side is at most
    ``max(limits)`` and whose short side is at most ``min(limits)`` pixels.
    """
    return _scaled(shape, min(max(limits) / max(shape), min(limits) / min(shape)))


def _scaled(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, int(shape[0] * factor + 0.5)), max(1, int(shape[1] * factor + 0.5))


def check_interpolation(name: str) -> str:
    """`name`; UserError if `resize_image` does not know it."""
    known = (*Resize.FILTERS, "cv2_bilinear")
    if name not in known:
        raise UserError(f"interpolation must be one of {', '.join(known)}, got {name!r}.{did_you_mean(name, known)}")
    return name


def resize_image(image: np.ndarray, shape: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 (H, W, 3) to `shape` (height, width); see `Resize` for `interpolation`."""
    if image.shape[:2] == tuple(shape):
        return image
    if interpolation == "cv2_bilinear":
        return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize(shape[::-1], Resize.FILTERS[interpolation]))


def resize_sample(sample: dict, shape: tuple[int, int], interpolation: str) -> dict:
    """The picture and all that is annotated on it, resized to `shape` (height, width)."""
    old_height, old_width = sample["img"].shape[:2]
    height, width = shape
    factor = (width / old_width, height / old_height)
    sample["img"] = resize_image(sample["img"], shape, interpolation)
    before = sample.get("scale_factor", (1.0, 1.0))
    sample.update(img_shape=(height, width), scale_factor=(before[0] * factor[0], before[1] * factor[1]))
    if "gt_bboxes" in sample:
        sample["gt_bboxes"] = sample["gt_bboxes"] * np.array(factor * 2, dtype=np.float32)
    if "gt_masks" in sample:
        sample["gt_masks"] = InstanceMasks.of(sample["gt_masks"]).resize(height, width)
    if "gt_sem_seg" in sample and sample["gt_sem_seg"].shape != (height, width):
        sample["gt_sem_seg"] = cv2.resize(sample["gt_sem_seg"], (width, height), interpolation=cv2.INTER_NEAREST)
    if "pan_ids" in sample:  # the value under each new pixel's centre, as Pillow takes it
        sample["pan_ids"] = cv2.resize(sample["pan_ids"], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return sample


@TRANSFORMS.register_module()
class PackDetInputs:
    """The sample as the model takes it: ``inputs`` uint8 tensor (3, H, W) RGB and ``data_samples``, a `DataSample` with the
    meta information and, when boxes were loaded, ``gt_instances``.
    """

    def __call__(self, sample: dict) -> dict:
        data_sample = DataSample(metainfo={key: sample[key] for key in META_KEYS if key in sample})
        if "gt_bboxes" in sample:
            instances = InstanceData(
                bboxes=torch.from_numpy(sample["gt_bboxes"].astype(np.float32)),
                labels=torch.from_numpy(sample["gt_labels"].astype(np.int64)),
            )
            if "gt_masks" in sample:
                instances.masks = torch.from_numpy(np.ascontiguousarray(InstanceMasks.of(sample["gt_masks"]).pixels))
            data_sample.gt_instances = instances
        return {"inputs": image_tensor(sample["img"]), "data_samples": data_sample}


def image_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) as uint8 (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _keep_objects(sample: dict, keep: np.ndarray) -> None:
    for key in ("gt_bboxes", "gt_labels", "gt_masks"):
        if key in sample:
            sample[key] = sample[key][keep]


def _clip(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """xyxy boxes clipped to a picture of `shape` (height, width, ...)."""
    return np.clip(boxes, 0, np.array([shape[1], shape[0]] * 2, dtype=np.float32))


def probability(p: float) -> float:
    if not (isinstance(p, Real) and 0 <= p <= 1):
        raise UserError(f"p must be a probability in 0..1, got {p!r}")
    return float(p)


def interval(name: str, bounds: Sequence[float], least: float, most: float = float("inf")) -> tuple[float, float]:
    if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
        raise UserError(f"{name} must be a pair (low, high) with {least:g} <= low <= high <= {most:g}, got {bounds!r}")
    return float(bounds[0]), float(bounds[1])
