"""`Predictor`: pictures in, detections or segmentations out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmvit.architectures import create_model, is_model, list_models, load_weights
from mmvit.architectures.segmenter import check_test_cfg
from mmvit.data import (
    ADE20K_CLASSES,
    CITYSCAPES_CLASSES,
    COCO_CLASSES,
    DataSample,
    PackDetInputs,
    PackSegInputs,
    Resize,
    ResizeToMultiple,
    TestTimeAug,
    palette_for,
)
from mmvit.data.classes import Colour
from mmvit.data.images import ImageLike, read_image
from mmvit.errors import UserError, did_you_mean
from mmvit.inference.results import Detections, Segmentation
from mmvit.inference.trained import Steps, build_model, recorded_config, recorded_steps
from mmvit.weights import index, load_checkpoint, load_into, resolve
from mmvit.weights.catalogue import is_published, published

Result = Detections | Segmentation


class Predictor:
    """Runs a detector or a segmenter on pictures of any size and kind.

    ``Predictor("rtdetr_r50")("img.jpg")`` downloads the official COCO weights at the first use and returns a list with one
    `Detections`; ``Predictor("vwformer_shapes")("img.jpg")`` returns a list with one `Segmentation`;
    ``Predictor(checkpoint="work_dirs/mine/best.pth")`` uses a model of your own.

    Args:
        model: name of a published model, or a built model of this package. None: ``rtdetr_r50``, or with a `checkpoint` of a
            training run the model that it was made with.
        config: training config of `checkpoint`, in place of `model`.
        checkpoint: weights file, address or published name to use in place of the ones published for `model`.
        device: for example ``cuda:0`` or ``cpu``; None: CUDA where there is one.
        score_thr: leave out detections with a lower score.
        batch_size: pictures per forward pass.
        deploy: fold batch norm and branches into convolutions first (same results, faster).
        classes: class names, where the checkpoint does not carry the right ones.
        tta: segmenters only: average over six scales and their mirror images (better, about twenty times slower).
        slide: segmenters only: predict window by window, so that memory does not grow with the picture.

    Attributes:
        model: the network, in evaluation mode.
        task: ``detection`` or ``semantic``.
        classes: tuple of class names; labels are positions in it.
        palette: RGB colour of each class.
        steps: the transforms that make a network input of a picture; as in training where the checkpoint says.

    Raises:
        UserError: unknown name, weights that cannot be had or do not fit, device that is absent, an option of the other task.
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        score_thr: float = 0.0,
        batch_size: int = 1,
        deploy: bool = False,
        classes: Sequence[str] | None = None,
        tta: bool = False,
        slide: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give at least 1")
        if config is not None and model is not None:
            raise UserError(f"both a config ({config}) and a model are given: use one of them")
        self.device = pick_device(device)
        network, meta, steps = _load(model, config, checkpoint, classes)
        self.model, self.task = network.to(self.device).eval(), network.task
        for option, chosen in (("tta", tta), ("slide", slide)):
            if chosen and self.task != "semantic":
                raise UserError(f"{option} is for semantic segmentation, but this model does {self.task}: leave it out")
        if deploy:
            self.model.deploy()
        if slide:
            _set_slide(self.model)
        self.score_thr, self.batch_size = score_thr, batch_size
        self.steps = [Resize(**network.eval_resize)] if steps is None else steps
        if tta and not any(isinstance(step, TestTimeAug) for step in self.steps):
            self.steps = [_views_of(self.steps)]
        self.classes = _class_names(network, classes, meta)
        recorded = (meta.get("dataset_meta") or meta) if classes is None else {}
        self.cat_ids = tuple(int(i) for i in recorded.get("cat_ids", ()))
        self.palette = _palette(recorded, self.classes)
        self._pack = PackSegInputs() if self.task == "semantic" else PackDetInputs()

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> list[Result]:
        """Predict for one picture or for several.

        Args:
            images: what `read_image` takes (path, bytes, RGB array, PIL image), or an iterable of these.

        Returns:
            One `Detections` or `Segmentation` per picture, in order; a list of one for a single picture.
        """
        if isinstance(images, (str, bytes, os.PathLike, np.ndarray, Image.Image)):
            images = [images]
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Result]:
        """Like a call, but reads and yields batch by batch, so that any number of pictures fits in memory."""
        remaining = iter(images)
        while batch := [read_image(image) for image in islice(remaining, self.batch_size)]:
            yield from self._predict(batch)

    def _predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        packed = [self._packed(image) for image in images]
        if self.task == "semantic" or len({item["inputs"].shape for item in packed}) == 1:
            samples = self._forward(packed)
        else:  # a detector's pictures that were resized with their aspect ratio kept
            samples = [self._forward([item])[0] for item in packed]
        result = self._segmentation if self.task == "semantic" else self._detections
        return [result(sample, image.shape[:2]) for sample, image in zip(samples, images)]

    def _packed(self, image: np.ndarray) -> dict[str, Any]:
        """uint8 (H, W, 3) -> what the data pipeline makes of it, with ``inputs`` uint8 (3, h, w) or a list of views."""
        size = image.shape[:2]
        sample = {
            "img": image,
            "img_id": 0,
            "img_path": "",
            "height": size[0],
            "width": size[1],
            "ori_shape": size,
            "img_shape": size,
        }
        for step in self.steps:
            sample = step(sample)
        return self._pack(sample)

    def _forward(self, packed: Sequence[dict[str, Any]]) -> list[DataSample]:
        try:
            with torch.inference_mode():
                return self.model.test_step({key: [item[key] for item in packed] for key in ("inputs", "data_samples")})
        except torch.cuda.OutOfMemoryError as error:
            windows = "" if self.task != "semantic" else ", windows (slide)"
            raise UserError(
                f"out of memory on {self.device} with {len(packed)} pictures at once: use a smaller batch size{windows}, or "
                "device 'cpu'"
            ) from error

    def _detections(self, sample: DataSample, image_size: tuple[int, int]) -> Detections:
        found = sample.pred_instances
        order = torch.argsort(found.scores.float(), descending=True, stable=True)
        return Detections(
            found.bboxes[order].float().cpu().numpy(),
            found.scores[order].float().cpu().numpy(),
            found.labels[order].cpu().numpy().astype(np.int64),
            self.classes,
            tuple(image_size),
            self.cat_ids,
            [found.masks[i] for i in order.tolist()] if "masks" in found else None,
        ).filter(self.score_thr)

    def _segmentation(self, sample: DataSample, image_size: tuple[int, int]) -> Segmentation:
        mask = sample.pred_sem_seg.data[0].cpu().numpy()
        return Segmentation(mask, self.classes, self.palette)


def _views_of(steps: Steps) -> TestTimeAug:
    """Test-time augmentation in the place of `Resize` and perhaps `ResizeToMultiple`."""
    settings: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, Resize):
            settings |= {"size": step.size, "interpolation": step.interpolation}
        elif isinstance(step, ResizeToMultiple):
            settings["divisor"] = step.divisor
    return TestTimeAug(**settings)


def _set_slide(network: nn.Module) -> None:
    """Sliding windows as the model's settings say, else of the size of its training crops, a third of them overlapping."""
    settings = dict(network.test_cfg, mode="slide")
    size = settings.setdefault("crop_size", network.data_preprocessor.size or (512, 512))
    height, width = (size, size) if isinstance(size, int) else size
    settings.setdefault("stride", (max(1, height * 2 // 3), max(1, width * 2 // 3)))
    network.test_cfg = check_test_cfg(settings)


def _palette(recorded: dict[str, Any], classes: Sequence[str]) -> tuple[Colour, ...]:
    """The colours that came with the checkpoint where there is one for each class, else those of `palette_for`."""
    try:
        colours = [tuple(int(part) for part in colour) for colour in recorded.get("palette") or recorded.get("PALETTE") or ()]
    except (TypeError, ValueError):
        colours = []
    fits = len(colours) == len(classes) and all(len(c) == 3 and all(0 <= part <= 255 for part in c) for c in colours)
    return tuple(colours if fits else palette_for(classes))


def pick_device(device: str | torch.device | None) -> torch.device:
    """The torch device of that name; None: CUDA where there is one, else the CPU. UserError if it is absent."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}: use cpu, cuda or cuda:0") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {str(device)!r} is absent (CUDA devices found: {torch.cuda.device_count()}): use `--device "
            "cpu`, or install a PyTorch with CUDA support"
        )
    return chosen


Loaded = tuple[nn.Module, dict[str, Any], "Steps | None"]  # model with weights, meta data, what is done to a picture


def _load(
    model: str | nn.Module | None,
    config: str | os.PathLike[str] | None,
    checkpoint: str | os.PathLike[str] | None,
    classes: Sequence[str] | None,
) -> Loaded:
    """The model with its weights, by what the user named."""
    if isinstance(model, nn.Module):
        meta = load_weights(model, resolve(checkpoint)) if checkpoint is not None else {}
        return model, meta, recorded_steps(recorded_config(meta))
    if config is not None and checkpoint is None:
        raise UserError(f"config {config} comes without weights: give a checkpoint as well")
    name = model
    if config is None and checkpoint is None:
        name = model or "rtdetr_r50"
    architecture = _architecture(name, checkpoint is None) if name is not None else None
    path = resolve(name if checkpoint is None else checkpoint)
    state, meta = load_checkpoint(path)
    recorded = recorded_config(meta)
    names = classes or meta.get("classes")
    count = len(names) if names else None
    if architecture is not None:
        network = create_model(architecture, num_classes=count)
    else:
        settings = _read_config(config) if config is not None else recorded
        if not settings or "model" not in settings:
            raise UserError(f"checkpoint {path} does not say what model it is of: give its --model or --config as well")
        network = build_model(settings["model"], count, str(config or path), trusted=config is not None)
        recorded = recorded or settings
    load_into(network, network.convert(state), source=str(path))
    return network, meta, recorded_steps(recorded)


def _architecture(name: str, published_weights: bool) -> str:
    """The name that `create_model` knows for a published name."""
    architecture = published(name).architecture if is_published(name) else name
    if not is_model(architecture):
        known = list_models()
        raise UserError(f"there is no model {name!r}.{did_you_mean(name, known)} `mmvit.list_models()` names all of them")
    if published_weights and not is_published(name):
        raise UserError(f"there are no published weights for {name!r}: {_without_weights(name)}")
    return architecture


def _without_weights(name: str) -> str:
    """What to do about a model of which no weights are published."""
    semantic = re.fullmatch(r"(upernet|segformer|vwformer)_(\w+?)(?:_(ade20k|cityscapes))?", name)
    task, recipe = "detection", "a recipe of configs/"
    if semantic:
        method, backbone, data = semantic.groups()
        task, recipe = "semantic", f"configs/{method}_{data or 'ade20k'}.py --backbone {backbone}"
    detector = re.fullmatch(r"(cascade_mask_rcnn|mask_rcnn|retinanet)_(\w+?)(?:_coco)?", name)
    if detector:
        method, backbone = detector.groups()
        recipe = f"configs/{method}_coco{'_3x' if method.startswith('cascade') else ''}.py --backbone {backbone}"
    packaged = [other for other, entry in index().items() if entry.packaged and entry.task == task]
    ready = f". Ready without download: {', '.join(packaged)}" if packaged else ""
    near = did_you_mean(name, [other for other in index() if other.startswith(f"{name.split('_')[0]}_")])
    return (
        f"train it (python tools/train.py {recipe}) and give the checkpoint that this writes with --checkpoint, or one from "
        f"elsewhere{ready}.{near}"
    )


def _read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    from mmvit.engine import check_config, load_config

    config = load_config(path)
    check_config(config)
    return config.to_dict()


#: Names for the class counts of well-known data sets, by task.
_KNOWN = {
    "detection": {len(COCO_CLASSES): COCO_CLASSES},
    "semantic": {len(ADE20K_CLASSES): ADE20K_CLASSES, len(CITYSCAPES_CLASSES): CITYSCAPES_CLASSES},
}


def _class_names(model: nn.Module, given: Sequence[str] | None, meta: dict[str, Any]) -> tuple[str, ...]:
    count = model.num_classes
    names = tuple(given or meta.get("classes") or _KNOWN[model.task].get(count) or (f"class {i}" for i in range(count)))
    if len(names) != count:
        raise UserError(f"{len(names)} class names ({', '.join(names[:3])} ...) for a model with {count} classes: give as many")
    return names
