"""Loading, augmentation and packing of semantic segmentation samples.

As in `transforms`, every transform is a callable ``sample -> sample``; random ones draw from ``sample["rng"]`` only. The class
map ``gt_sem_seg`` is uint8 (H, W), 255 = no class; it stays on the pixels of ``img``. The augmentations have the semantics of
mmsegmentation's, which the published figures of UPerNet, SegFormer and VWFormer were trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import cv2
import numpy as np
import torch
from mmengine.structures import PixelData

from mmvit.data.masks import IGNORE
from mmvit.data.structures import DataSample
from mmvit.data.transforms import (
    META_KEYS,
    PhotometricDistort,
    check_interpolation,
    image_tensor,
    interval,
    rescaled,
    resize_image,
    resize_sample,
)
from mmvit.errors import UserError
from mmvit.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadSemanticMask:
    """Reads ``mask_path`` with the dataset's ``mask_reader`` into ``gt_sem_seg``: uint8 (H, W), classes from 0, 255 = none.

    Needs `LoadImage` before it. A mask of another size than the stored picture is a `UserError`.
    """

    def __call__(self, sample: dict) -> dict:
        labels = sample["mask_reader"](sample["mask_path"])
        if labels.shape != tuple(sample["ori_shape"]):
            (height, width), (mask_height, mask_width) = sample["ori_shape"], labels.shape
            raise UserError(
                f"{sample['mask_path']}: the mask is {mask_width}x{mask_height} pixels, its picture {sample['img_path']} "
                f"{width}x{height} (width x height). Write the mask at the picture's size"
            )
        sample["gt_sem_seg"] = labels
        return sample


@TRANSFORMS.register_module()
class RandomResize:
    """Resizes, without distortion, to `scale` times a factor drawn evenly from `ratio_range`.

    Args:
        scale: limits of the long and the short side in pixels (see `Resize` with keep_ratio), before the factor.
        ratio_range: least and greatest factor.
        interpolation: as in `Resize`.
    """

    def __init__(
        self, scale: Sequence[int], ratio_range: Sequence[float] = (0.5, 2.0), interpolation: str = "cv2_bilinear"
    ) -> None:
        self.scale = _sides("RandomResize: scale", scale)
        self.ratio_range = interval("ratio_range", ratio_range, 0.0)
        if self.ratio_range[0] == 0:
            raise UserError(f"RandomResize: ratio_range must start above 0, got {ratio_range!r}")
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        factor = sample["rng"].uniform(*self.ratio_range)
        limits = [max(1, int(side * factor)) for side in self.scale]
        return resize_sample(sample, rescaled(sample["img"].shape[:2], limits), self.interpolation)


@TRANSFORMS.register_module()
class RandomCrop:
    """Cuts out a window of `size` = (height, width) pixels at a random place, or as much of it as the picture has.

    Args:
        size: of the window; an integer for both sides.
        cat_max_ratio: the share of the window's labelled pixels that one class may take. A window with a greater share, or
            with fewer than two classes, is drawn anew, up to ten times. 1: any window will do.
    """

    TRIALS = 10

    def __init__(self, size: int | Sequence[int], cat_max_ratio: float = 1.0) -> None:
        self.size = _sides("RandomCrop: size", size)
        if not (isinstance(cat_max_ratio, Real) and 0 < cat_max_ratio <= 1):
            raise UserError(f"RandomCrop: cat_max_ratio must be a share above 0 and at most 1, got {cat_max_ratio!r}")
        self.cat_max_ratio = float(cat_max_ratio)

    def __call__(self, sample: dict) -> dict:
        rows, columns = self._window(sample)
        for _ in range(self.TRIALS if self.cat_max_ratio < 1 else 0):
            if self._is_varied(sample["gt_sem_seg"][rows, columns]):
                break
            rows, columns = self._window(sample)
        sample["img"] = sample["img"][rows, columns]
        sample["img_shape"] = sample["img"].shape[:2]
        if "gt_sem_seg" in sample:
            sample["gt_sem_seg"] = sample["gt_sem_seg"][rows, columns]
        return sample

    def _window(self, sample: dict) -> tuple[slice, slice]:
        starts = [sample["rng"].integers(max(side - wanted, 0) + 1) for side, wanted in zip(sample["img"].shape, self.size)]
        return slice(starts[0], starts[0] + self.size[0]), slice(starts[1], starts[1] + self.size[1])

    def _is_varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel(), minlength=256)
        counts[IGNORE] = 0
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio


def shift_brightness(image: np.ndarray, amount: float) -> np.ndarray:
    """uint8 (H, W, 3) plus `amount`, saturating, rounded down."""
    return cv2.LUT(image, _floor_table(np.arange(256) + amount))


def scale_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """uint8 (H, W, 3) times `factor`, saturating, rounded down."""
    return cv2.LUT(image, _floor_table(np.arange(256, dtype=np.float32) * np.float32(factor)))


def scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """The saturation of the 8-bit HSV picture times `factor`."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = cv2.LUT(
        np.ascontiguousarray(hsv[..., 1]), _floor_table(np.arange(256, dtype=np.float32) * np.float32(factor))
    )
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def shift_hue(image: np.ndarray, steps: float) -> np.ndarray:
    """The hue of the 8-bit HSV picture, which has steps of 2 degrees, moved by `steps` of them, rounded down."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    table = ((np.arange(256) + int(np.floor(steps))) % 180).astype(np.uint8)
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _floor_table(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class SegPhotometricDistort(PhotometricDistort):
    """Brightness, contrast, saturation and hue, each changed with probability `p` (mmsegmentation's PhotoMetricDistortion, of
    SSD's kind). Contrast comes before saturation and hue or after them, with equal probability.

    Brightness is added (in grey levels), contrast multiplies the pixels, saturation and hue (in steps of 2 degrees) are those
    of the 8-bit HSV picture. Every step rounds down.
    """

    LIMITS = {"brightness": (-255.0, 255.0), "hue": (-90.0, 90.0)}
    PERMUTES = False
    adjust_brightness = staticmethod(shift_brightness)
    adjust_contrast = staticmethod(scale_contrast)
    adjust_saturation = staticmethod(scale_saturation)
    adjust_hue = staticmethod(shift_hue)

    def __init__(
        self,
        p: float = 0.5,
        brightness: Sequence[float] = (-32, 32),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-18, 18),
    ) -> None:
        super().__init__(p, brightness, contrast, saturation, hue)


@TRANSFORMS.register_module()
class ResizeToMultiple:
    """Resizes so that both sides become multiples of `divisor`, rounded up (changes the aspect ratio a little)."""

    def __init__(self, divisor: int, interpolation: str = "cv2_bilinear") -> None:
        self.divisor = _positive("ResizeToMultiple: divisor", divisor)
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        return resize_sample(sample, _rounded_up(sample["img"].shape, self.divisor), self.interpolation)


@TRANSFORMS.register_module()
class TestTimeAug:
    """Several views of a picture, for a model that averages its predictions over them.

    Adds ``views``: dicts with ``img``, uint8 (h, w, 3), and ``flip``, whether it is mirrored. ``img`` stays as it is. Stands in
    the place of `Resize`.

    Args:
        scales: factors of `size`.
        flip: add the mirrored view of each.
        size: limits of the long and the short side in pixels (see `Resize` with keep_ratio) at factor 1. None: the picture's
            own size.
        divisor: sides are then rounded up to its multiples. None: they are not.
        interpolation: as in `Resize`.
    """

    __test__ = False  # not a test, in spite of its name

    def __init__(
        self,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        size: int | Sequence[int] | None = None,
        divisor: int | None = None,
        interpolation: str = "cv2_bilinear",
    ) -> None:
        if not len(scales) or not all(isinstance(scale, Real) and scale > 0 for scale in scales):
            raise UserError(f"TestTimeAug: scales must be factors above 0, got {scales!r}")
        self.scales = tuple(float(scale) for scale in scales)
        self.flip = flip
        self.size = None if size is None else _sides("TestTimeAug: size", size)
        self.divisor = None if divisor is None else _positive("TestTimeAug: divisor", divisor)
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        image, views = sample["img"], []
        for scale in self.scales:
            view = resize_image(image, self._shape(image.shape[:2], scale), self.interpolation)
            views.append({"img": view, "flip": False})
            if self.flip:
                views.append({"img": cv2.flip(view, 1), "flip": True})
        sample["views"] = views
        return sample

    def _shape(self, shape: tuple[int, int], scale: float) -> tuple[int, int]:
        if self.size is None:
            target = max(1, int(shape[0] * scale + 0.5)), max(1, int(shape[1] * scale + 0.5))
        else:
            target = rescaled(shape, [max(1, int(side * scale)) for side in self.size])
        return _rounded_up(target, self.divisor) if self.divisor else target


@TRANSFORMS.register_module()
class PackSegInputs:
    """The sample as the model takes it: ``inputs`` uint8 tensor (3, h, w) RGB and ``data_samples``, a `DataSample` with the
    meta information (also ``mask_path``) and, when a mask was loaded, ``gt_sem_seg``: `PixelData` with uint8 data (1, h, w).

    After `TestTimeAug` the inputs are a list of such tensors, one for each view; ``view_flips`` (list of bool) in the meta
    information says which are mirrored.
    """

    def __call__(self, sample: dict) -> dict:
        data_sample = DataSample(metainfo={key: sample[key] for key in (*META_KEYS, "mask_path") if key in sample})
        if "gt_sem_seg" in sample:
            labels = torch.from_numpy(np.ascontiguousarray(sample["gt_sem_seg"]))
            data_sample.gt_sem_seg = PixelData(data=labels[None])
        if "views" not in sample:
            return {"inputs": image_tensor(sample["img"]), "data_samples": data_sample}
        data_sample.set_metainfo({"view_flips": [view["flip"] for view in sample["views"]]})
        return {"inputs": [image_tensor(view["img"]) for view in sample["views"]], "data_samples": data_sample}


def _sides(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Two positive integers; one stands for both."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise UserError(f"{name} must be two whole numbers of pixels, got {value!r}")
    return pair


def _positive(name: str, value: int) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _rounded_up(shape: Sequence[int], divisor: int) -> tuple[int, int]:
    return -(-shape[0] // divisor) * divisor, -(-shape[1] // divisor) * divisor
