"""Loading, augmentation and packing of semantic segmentation samples; crops and sizes are in `transforms_sizes`.

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

from mmvit.data.structures import DataSample
from mmvit.data.transforms import (
    META_KEYS,
    PhotometricDistort,
    check_interpolation,
    image_tensor,
    rescaled,
    resize_image,
)
from mmvit.data.transforms_sizes import positive, rounded_up, sides
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
        self.size = None if size is None else sides("TestTimeAug: size", size)
        self.divisor = None if divisor is None else positive("TestTimeAug: divisor", divisor)
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
        return rounded_up(target, self.divisor) if self.divisor else target


@TRANSFORMS.register_module()
class PackSegInputs:
    """The sample as the model takes it: ``inputs`` uint8 tensor (3, h, w) RGB and ``data_samples``, a `DataSample` with the
    meta information (also ``mask_path``) and, when a mask was loaded, ``gt_sem_seg``: `PixelData` with uint8 data (1, h, w).

    After `TestTimeAug` the inputs are a list of such tensors, one for each view; ``view_flips`` (list of bool) in the meta
    information says which are mirrored.
    """

    META = ("mask_path",)  # besides `META_KEYS`

    def __call__(self, sample: dict) -> dict:
        data_sample = DataSample(metainfo={key: sample[key] for key in (*META_KEYS, *self.META) if key in sample})
        self.annotate(data_sample, sample)
        if "views" not in sample:
            return {"inputs": image_tensor(sample["img"]), "data_samples": data_sample}
        data_sample.set_metainfo({"view_flips": [view["flip"] for view in sample["views"]]})
        return {"inputs": [image_tensor(view["img"]) for view in sample["views"]], "data_samples": data_sample}

    def annotate(self, data_sample: DataSample, sample: dict) -> None:
        """Adds what was loaded of the annotation."""
        if "gt_sem_seg" in sample:
            labels = torch.from_numpy(np.ascontiguousarray(sample["gt_sem_seg"]))
            data_sample.gt_sem_seg = PixelData(data=labels[None])
