"""Random sizes, crops and padding of samples of every kind.

As in `transforms`, every transform is a callable ``sample -> sample``; random ones draw from ``sample["rng"]`` only. Boxes,
masks and maps stay on the pixels of ``img``. The published recipes are compositions:

  mmsegmentation   RandomResize(scale=(2048, 512), ratio_range=(0.5, 2)), RandomCrop(512, cat_max_ratio=0.75)
  multi-scale      RandomChoiceResize(scales=[(480, 1333), ..., (800, 1333)])
  DETR's crops     RandomChoice([[RandomChoiceResize(480..800)],
                                 [RandomChoiceResize([(400, 4200), (500, 4200), (600, 4200)]), RandomRangeCrop(384, 600),
                                  RandomChoiceResize(480..800)]])
  large-scale jitter   RandomResize(scale=1024, ratio_range=(0.1, 2)), RandomCrop(1024), FixedSizePad(1024)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import cv2
import numpy as np

from mmvit.data.base import apply, build_steps
from mmvit.data.instance_masks import InstanceMasks
from mmvit.data.masks import IGNORE
from mmvit.data.panoptic_files import semantic_map
from mmvit.data.transforms import check_interpolation, crop_sample, interval, rescaled, resize_sample
from mmvit.errors import UserError
from mmvit.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomResize:
    """Resizes, without distortion, to `scale` times a factor drawn evenly from `ratio_range`.

    Args:
        scale: limits of the long and the short side in pixels (see `Resize` with keep_ratio), before the factor.
        ratio_range: least and greatest factor.
        interpolation: as in `Resize`.
    """

    def __init__(
        self, scale: int | Sequence[int], ratio_range: Sequence[float] = (0.5, 2.0), interpolation: str = "cv2_bilinear"
    ) -> None:
        self.scale = sides("RandomResize: scale", scale)
        self.ratio_range = interval("ratio_range", ratio_range, 0.0)
        if self.ratio_range[0] == 0:
            raise UserError(f"RandomResize: ratio_range must start above 0, got {ratio_range!r}")
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        factor = sample["rng"].uniform(*self.ratio_range)
        limits = [max(1, int(side * factor)) for side in self.scale]
        return resize_sample(sample, rescaled(sample["img"].shape[:2], limits), self.interpolation)


@TRANSFORMS.register_module()
class RandomChoiceResize:
    """Resizes, without distortion, to one of several sizes, all equally likely.

    Args:
        scales: limits of the long and the short side in pixels, each as in `Resize` with keep_ratio: (800, 1333) makes the
            short side 800 unless the long one would be more than 1333.
        interpolation: as in `Resize`.
    """

    def __init__(self, scales: Sequence[int | Sequence[int]], interpolation: str = "cv2_bilinear") -> None:
        if isinstance(scales, int) or not len(scales):
            raise UserError(f"RandomChoiceResize: scales must be a list of sizes, got {scales!r}")
        self.scales = [sides("RandomChoiceResize: each of scales", scale) for scale in scales]
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        limits = self.scales[sample["rng"].integers(len(self.scales))]
        return resize_sample(sample, rescaled(sample["img"].shape[:2], limits), self.interpolation)


@TRANSFORMS.register_module()
class ResizeToMultiple:
    """Resizes so that both sides become multiples of `divisor`, rounded up (changes the aspect ratio a little)."""

    def __init__(self, divisor: int, interpolation: str = "cv2_bilinear") -> None:
        self.divisor = positive("ResizeToMultiple: divisor", divisor)
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, sample: dict) -> dict:
        return resize_sample(sample, rounded_up(sample["img"].shape, self.divisor), self.interpolation)


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
        self.size = sides("RandomCrop: size", size)
        if not (isinstance(cat_max_ratio, Real) and 0 < cat_max_ratio <= 1):
            raise UserError(f"RandomCrop: cat_max_ratio must be a share above 0 and at most 1, got {cat_max_ratio!r}")
        self.cat_max_ratio = float(cat_max_ratio)

    def __call__(self, sample: dict) -> dict:
        rows, columns = self._window(sample)
        for _ in range(self.TRIALS if self.cat_max_ratio < 1 else 0):
            if self._is_varied(self._labels(sample)[rows, columns]):
                break
            rows, columns = self._window(sample)
        return crop_sample(sample, rows.start, columns.start, *self.size)

    def _window(self, sample: dict) -> tuple[slice, slice]:
        starts = [
            int(sample["rng"].integers(max(side - wanted, 0) + 1)) for side, wanted in zip(sample["img"].shape, self.size)
        ]
        return slice(starts[0], starts[0] + self.size[0]), slice(starts[1], starts[1] + self.size[1])

    def _labels(self, sample: dict) -> np.ndarray:
        """The class of every pixel."""
        if "gt_sem_seg" in sample:
            return sample["gt_sem_seg"]
        if "pan_ids" in sample:
            return semantic_map(sample["pan_ids"], sample["segments"])
        raise UserError("RandomCrop: cat_max_ratio needs a map of classes: load masks or panoptic maps before it")

    def _is_varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel(), minlength=256)
        counts[IGNORE] = 0
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio


@TRANSFORMS.register_module()
class RandomRangeCrop:
    """Cuts out a window at a random place, whose height and width are each drawn from `low` to `high` pixels, or all of a
    side that is shorter (the crop of DETR's recipe).
    """

    def __init__(self, low: int = 384, high: int = 600) -> None:
        self.low, self.high = positive("RandomRangeCrop: low", low), positive("RandomRangeCrop: high", high)
        if low > high:
            raise UserError(f"RandomRangeCrop: low must be at most high, got {low} and {high}")

    def __call__(self, sample: dict) -> dict:
        rng, shape = sample["rng"], sample["img"].shape[:2]
        height, width = (int(rng.integers(min(side, self.low), min(side, self.high) + 1)) for side in shape)
        top, left = (int(rng.integers(side - wanted + 1)) for side, wanted in zip(shape, (height, width)))
        return crop_sample(sample, top, left, height, width)


@TRANSFORMS.register_module()
class FixedSizePad:
    """Pads right and below to `size` = (height, width); a larger picture stays as it is.

    Maps are padded with what means "no class" and "void", masks with nothing.

    Args:
        size: an integer for both sides.
        fill: of the picture: a grey value, or red, green and blue.
    """

    def __init__(self, size: int | Sequence[int], fill: int | Sequence[int] = 128) -> None:
        self.size = sides("FixedSizePad: size", size)
        self.fill = (fill,) * 3 if isinstance(fill, int) else tuple(fill)
        if len(self.fill) != 3 or not all(isinstance(value, Real) and 0 <= value <= 255 for value in self.fill):
            raise UserError(f"FixedSizePad: fill must be one or three numbers from 0 to 255, got {fill!r}")

    def __call__(self, sample: dict) -> dict:
        return pad_sample(sample, self.size, self.fill)


def pad_sample(sample: dict, size: Sequence[int], fill: Sequence[float]) -> dict:
    """The picture padded right and below to `size` (height, width) with colour `fill`, and all that is annotated on it."""
    shape = sample["img"].shape[:2]
    height, width = (max(pair) for pair in zip(shape, size))
    if (height, width) == shape:
        return sample
    borders = (0, height - shape[0], 0, width - shape[1], cv2.BORDER_CONSTANT)
    sample.update(img=cv2.copyMakeBorder(sample["img"], *borders, value=tuple(fill)), img_shape=(height, width))
    for key, nothing in (("gt_sem_seg", IGNORE), ("pan_ids", 0)):
        if key in sample:
            sample[key] = cv2.copyMakeBorder(sample[key], *borders, value=nothing)
    if "gt_masks" in sample:
        sample["gt_masks"] = InstanceMasks.of(sample["gt_masks"]).window(0, 0, height, width)
    return sample


@TRANSFORMS.register_module()
class RandomChoice:
    """Runs one of several lists of transforms.

    Args:
        transforms: the lists, each of config dicts or callables.
        prob: probability of each; None: all alike.
    """

    def __init__(self, transforms: Sequence[Sequence[dict | Callable]], prob: Sequence[float] | None = None) -> None:
        if not transforms or not all(isinstance(steps, (list, tuple)) for steps in transforms):
            raise UserError(f"RandomChoice: transforms must be a list of lists of transforms, got {transforms!r}")
        if prob is not None and (len(prob) != len(transforms) or min(prob) < 0 or abs(sum(prob) - 1) > 1e-6):
            raise UserError(f"RandomChoice: prob must hold {len(transforms)} probabilities whose sum is 1, got {prob!r}")
        self.branches = [build_steps(steps) for steps in transforms]
        self.prob = None if prob is None else list(prob)

    def __call__(self, sample: dict) -> dict | None:
        return apply(self.branches[sample["rng"].choice(len(self.branches), p=self.prob)], sample)


def sides(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Two positive integers; one stands for both."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise UserError(f"{name} must be two whole numbers of pixels, got {value!r}")
    return pair


def positive(name: str, value: int) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def rounded_up(shape: Sequence[int], divisor: int) -> tuple[int, int]:
    return -(-shape[0] // divisor) * divisor, -(-shape[1] // divisor) * divisor
