"""Changes of a config's data pipelines: input size, augmentation, sliding windows, test-time augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from mmvit.engine.arguments import accepted_arguments
from mmvit.engine.datasets import datasets, is_panoptic, is_semantic
from mmvit.errors import UserError
from mmvit.registry import TRANSFORMS

#: steps that make sizes random, or fixed for training only
_RANDOM_SIZE = ("RandomResize", "RandomChoiceResize", "RandomCrop", "RandomRangeCrop", "RandomChoice", "FixedSizePad")
#: what stands in their place when a picture is taken as it is
_PLAIN_SIZE = ("Resize", "ResizeToMultiple")
TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_SLIDE_STRIDE = 2 / 3  # of a window


def _steps(cfg: Config, kind: str, split: str | None = None) -> Iterator[ConfigDict]:
    for name, dataset in datasets(cfg):
        if split in (None, name):
            yield from (step for step in _flat(dataset.get("pipeline", ())) if step.get("type") == kind)


def _flat(steps: Sequence[Any]) -> Iterator[ConfigDict]:
    """The steps and, after each, those within it."""
    for step in steps:
        if isinstance(step, (list, tuple)):
            yield from _flat(step)
        else:
            yield step
            yield from _flat(step.get("transforms", ()))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def set_size(cfg: Config, size: int) -> None:
    """Detection at a fixed size: square input of side `size`, multi-scale sides keep their ratio to it. Otherwise: see
    `set_crop`.
    """
    has_crops = is_semantic(cfg) or is_panoptic(cfg) or any(step.get("keep_ratio") for step in _steps(cfg, "Resize"))
    extra = _extra(crop_of(cfg)) if has_crops else 0
    if size < 32 or size % 32 not in (0, extra):
        more = " or one more" if extra else ""
        raise UserError(f"--size {size}: the side must be a multiple of 32{more}, 32 or more.")
    if has_crops:
        set_crop(cfg, size)
        return
    before = None
    for step in _steps(cfg, "Resize"):
        before = _pair(step.size)[0]
        step.size = (size, size)
    preprocessor = cfg.model.get("data_preprocessor", {})
    if before and preprocessor.get("multi_scale"):
        preprocessor.multi_scale = [max(32, int(side * size / before / 32 + 0.5) * 32) for side in preprocessor.multi_scale]


def _extra(crop: tuple[int, int]) -> int:
    """1 for kMaX-DeepLab's sizes, whose sides are multiples of 32 and one more, else 0."""
    return int(all(side % 32 == 1 for side in crop))


def crop_of(cfg: Config) -> tuple[int, int]:
    """(height, width) of a segmentation config's training crops; without any, the short side of its pictures."""
    crop = next((step.size for step in _steps(cfg, "RandomCrop", "train")), None)
    crop = crop or cfg.model.get("data_preprocessor", {}).get("size")
    if not crop:
        sides = next((_pair(step.size) for step in _steps(cfg, "Resize")), None)
        if sides is None:
            raise UserError("The config has neither a RandomCrop nor a Resize: it does not say what its crop is.")
        crop = min(sides)
    return _pair(crop)


def set_crop(cfg: Config, size: int) -> None:
    """Training crops, or where there are none pictures, whose short side is `size`; all other sizes change in proportion.

    Where the recipe's sides are multiples of 32 and one more, they stay so.
    """
    before = crop_of(cfg)
    extra = _extra(before)
    factor = (size // 32 * 32) / (min(before) - extra)

    def scaled(sides: Any) -> tuple[int, ...]:
        return tuple(max(1, round((side - extra) * factor)) + extra for side in _pair(sides))

    crop = tuple(max(32, int((side - extra) * factor / 32 + 0.5) * 32) + extra for side in before)
    for kind in ("RandomCrop", "FixedSizePad"):
        for step in _steps(cfg, kind):
            step.size = crop
    for step in _steps(cfg, "RandomChoiceResize"):
        step.scales = [scaled(scale) for scale in step.scales]
    for step in _steps(cfg, "RandomRangeCrop"):
        step.update({key: scaled(step.get(key, default))[0] for key, default in (("low", 384), ("high", 600))})
    for step in _steps(cfg, "RequireSegments"):
        step.min_pixels = int(step.get("min_pixels", 0) * factor**2)
    preprocessor = cfg.model.get("data_preprocessor", {})
    if preprocessor.get("size"):
        preprocessor.size = crop
    for kind, key in (("Resize", "size"), ("TestTimeAug", "size"), ("RandomResize", "scale")):
        for step in _steps(cfg, kind):
            if step.get(key):
                step[key] = scaled(step[key])
    test_cfg = cfg.model.get("test_cfg") or {}
    for key in ("crop_size", "stride"):
        if key in test_cfg:
            test_cfg[key] = scaled(test_cfg[key])


def drop_augmentation(cfg: Config) -> None:
    """Train on the pictures as they are evaluated: nothing that happens with a probability, no multi-scale, no crops."""
    dataset = cfg.train_dataloader.dataset
    steps = [step for step in dataset.pipeline if "p" not in (accepted_arguments(TRANSFORMS.get(step.type)) or ())]
    steps = _sized_as_evaluated(cfg, steps)
    preprocessor = cfg.model.get("data_preprocessor", {})
    if preprocessor.get("size") and not _holds_evaluated(cfg, _pair(preprocessor.size)):
        preprocessor.size = None  # that of the crops; batches become as large as their largest picture
    dataset.pipeline = steps
    if cfg.model.get("data_preprocessor", {}).get("multi_scale"):
        cfg.model.data_preprocessor.multi_scale = None
    cfg.default_hooks.pop("stop_augmentation", None)


def _holds_evaluated(cfg: Config, size: tuple[int, int]) -> bool:
    """Whether every picture fits into `size` (height, width) as it is evaluated."""
    resize = next(_steps(cfg, "Resize", "val"), None)
    if resize is None:
        return False
    height, width = _pair(resize.size)
    if resize.get("keep_ratio") and not resize.get("oriented"):  # either side may be the long one
        height = width = max(height, width)
    return height <= size[0] and width <= size[1]


def _sized_as_evaluated(cfg: Config, steps: list) -> list:
    """`steps` with the resizing of the evaluation in the place of random sizes and crops."""
    if not any(step.type in _RANDOM_SIZE for step in steps):
        return steps
    first = next(i for i, step in enumerate(steps) if step.type in _RANDOM_SIZE)
    sized = [ConfigDict(step) for kind in _PLAIN_SIZE for step in list(_steps(cfg, kind, "val"))[:1]]
    return steps[:first] + sized + [step for step in steps[first:] if step.type not in _RANDOM_SIZE]


def _needs_segmenter(cfg: Config, option: str) -> None:
    """UserError unless the config's model labels each pixel, and knows windows and views."""
    if not is_semantic(cfg):
        task = "is for panoptic segmentation" if is_panoptic(cfg) else "detects objects"
        raise UserError(f"{option} is for semantic segmentation; this config {task}.")
    if cfg.model.type != "Segmenter":
        raise UserError(f"{option} is not possible with {cfg.model.type}, which classifies masks. Leave it out.")


def set_slide(cfg: Config) -> None:
    """Evaluate by sliding windows: those of the recipe, else of the size of the training crops, a third overlapping."""
    _needs_segmenter(cfg, "--slide")
    test_cfg = dict(cfg.model.get("test_cfg") or {})
    crop = _pair(test_cfg.get("crop_size") or crop_of(cfg))
    test_cfg.setdefault("stride", tuple(max(1, int(side * _SLIDE_STRIDE)) for side in crop))
    cfg.model.test_cfg = dict(test_cfg, mode="slide", crop_size=crop)


def set_tta(cfg: Config) -> None:
    """Evaluate the mean prediction over six scales and their mirror images, with `TestTimeAug` in the place of `Resize`."""
    _needs_segmenter(cfg, "--tta")
    dataset = cfg.test_dataloader.dataset
    resize = next((step for step in dataset.pipeline if step.type == "Resize"), {})
    multiple = next((step for step in dataset.pipeline if step.type == "ResizeToMultiple"), {})
    if not resize.get("keep_ratio"):
        raise UserError("--tta: the test pipeline has no Resize with keep_ratio=True that TestTimeAug could stand in for.")
    views = ConfigDict(type="TestTimeAug", scales=TTA_SCALES, flip=True, size=_pair(resize["size"]))
    views.update({key: source[key] for source, key in ((resize, "interpolation"), (multiple, "divisor")) if key in source})
    place = dataset.pipeline.index(resize)
    dataset.pipeline = [
        step for step in [*dataset.pipeline[:place], views, *dataset.pipeline[place + 1 :]] if step.type != "ResizeToMultiple"
    ]
