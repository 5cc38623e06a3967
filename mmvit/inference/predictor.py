"""`Predictor`: pictures in, detections, segmentations or panoptic segmentations out."""

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
from mmvit.architectures.mask_segmenter import ARCHS, OUTPUTS
from mmvit.architectures.segmenter import check_test_cfg
from mmvit.data import (
    ADE20K_CLASSES,
    CITYSCAPES_CLASSES,
    COCO_CLASSES,
    COCO_PANOPTIC_CLASSES,
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
from mmvit.inference.results import Detections, PanopticSegmentation, Segmentation
from mmvit.inference.trained import Steps, build_model, recorded_config, recorded_steps
from mmvit.weights import index, load_checkpoint, load_into, resolve
from mmvit.weights.catalogue import is_published, published

Result = Detections | Segmentation | PanopticSegmentation


class Predictor:
    """Runs a detector, a segmenter or a mask classifier on pictures of any size and kind.

    ``Predictor("rtdetr_r50")("img.jpg")`` downloads the official COCO weights at the first use and returns a list with one
    `Detections`; ``Predictor("vwformer_shapes")("img.jpg")`` returns a list with one `Segmentation`;
    ``Predictor(checkpoint="work_dirs/mine/best.pth")`` uses a model of your own. A mask classifier (Mask2Former, kMaX-DeepLab,
    PEM) gives `PanopticSegmentation`s, or with a `task` `Detections` with masks or `Segmentation`s.

    Args:
        model: name of a published model, or a built model of this package. None: ``rtdetr_r50``, or with a `checkpoint` of a
            training run the model that it was made with.
        config: training config of `checkpoint`, in place of `model`.
        checkpoint: weights file, address or published name to use in place of the ones published for `model`.
        device: for example ``cuda:0`` or ``cpu``; None: CUDA where there is one.
        score_thr: leave out detections with a lower score. (Segments have passed the thresholds of the model's settings.)
        batch_size: pictures per forward pass.
        deploy: fold batch norm and branches into convolutions first (same results, faster).
        classes: class names, where the checkpoint does not carry the right ones.
        task: ``panoptic``, ``instance`` or ``semantic``, for mask classifiers that can give several: those trained for panoptic
            segmentation all three, others what they were trained for. None: the first of these. A given model is set to it.
        tta: segmenters only: average over six scales and their mirror images (better, about twenty times slower).
        slide: segmenters only: predict window by window, so that memory does not grow with the picture.

    Attributes:
        model: the network, in evaluation mode.
        task: ``detection``, ``semantic``, ``panoptic`` or ``instance``.
        classes: tuple of class names; labels are positions in it.
        palette: RGB colour of each class.
        things: positions of the classes whose objects a mask classifier tells apart.
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
        task: str | None = None,
        tta: bool = False,
        slide: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give at least 1")
        if config is not None and model is not None:
            raise UserError(f"both a config ({config}) and a model are given: use one of them")
        self.device = pick_device(device)
        network, meta, steps = _load(model, config, checkpoint, classes)
        self.model, self.task = network.to(self.device).eval(), _choose_task(network, task)
        for option, chosen in (("tta", tta), ("slide", slide)):
            if chosen and network.task != "semantic":
                other = "is a mask classifier" if self.task == "semantic" else f"does {self.task}"
                raise UserError(f"{option} is for semantic segmentation, but this model {other}: leave it out")
        if deploy:
            self.model.deploy()
        if slide:
            _set_slide(self.model)
        self.score_thr, self.batch_size = score_thr, batch_size
        self.steps = [_resize_of(network)] if steps is None else steps
        if tta and not any(isinstance(step, TestTimeAug) for step in self.steps):
            self.steps = [_views_of(self.steps)]
        self.classes = _class_names(network, classes, meta)
        recorded = meta.get("dataset_meta") or meta
        self.things = _set_things(network, recorded.get("things"))
        recorded = recorded if classes is None else {}
        cat_ids = tuple(int(i) for i in recorded.get("cat_ids", ()))
        self.cat_ids = cat_ids if len(cat_ids) == len(self.classes) else ()
        self.palette = _palette(recorded, self.classes)
        self._pack = PackSegInputs() if network.task == "semantic" else PackDetInputs()

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> list[Result]:
        """Predict for one picture or for several.

        Args:
            images: what `read_image` takes (path, bytes, RGB array, PIL image), or an iterable of these.

        Returns:
            One `Detections`, `Segmentation` or `PanopticSegmentation` per picture, in order; a list of one for a single
            picture.
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
        if self.model.task == "semantic" or len({item["inputs"].shape for item in packed}) == 1:
            samples = self._forward(packed)
        else:  # pictures that were resized with their aspect ratio kept, and that a batch would pad
            samples = [self._forward([item])[0] for item in packed]
        result = {"semantic": self._segmentation, "panoptic": self._panoptic}.get(self.task, self._detections)
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
            windows = "" if self.model.task != "semantic" else ", windows (slide)"
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

    def _panoptic(self, sample: DataSample, image_size: tuple[int, int]) -> PanopticSegmentation:
        ids = sample.pred_panoptic_seg.data[0].cpu().numpy()
        return PanopticSegmentation.of(ids, sample.segments_info, self.classes, self.things, self.palette, self.cat_ids)


def _choose_task(network: nn.Module, wish: str | None) -> str:
    """The task of a model: of those that a mask classifier can do `wish`, or the first; it then does no other."""
    outputs = getattr(network, "outputs", None)
    tasks = (network.task,) if outputs is None else OUTPUTS if "panoptic" in outputs else tuple(outputs)
    if wish is not None and wish not in tasks:
        near = did_you_mean(wish, tasks)
        raise UserError(f"this model does {' and '.join(tasks)}, not {wish}:{near} leave the task out, or take another model")
    if outputs is not None:
        network.outputs = (wish or tasks[0],)
    return wish or tasks[0]


def _set_things(network: nn.Module, recorded: Sequence[int] | None) -> tuple[int, ...]:
    """The classes whose objects a mask classifier tells apart, as its checkpoint says, else as it was built; () for others."""
    if not hasattr(network, "things"):
        return ()
    network.things = tuple(label for label in (network.things if recorded is None else recorded) if label < network.num_classes)
    return network.things


def _resize_of(network: nn.Module) -> Resize:
    """What makes a network input of a picture where no training says; upright ones fit into an input of one size, too."""
    settings = dict(network.eval_resize)
    canvas = getattr(getattr(network, "data_preprocessor", None), "size", None) if network.task == "panoptic" else None
    if canvas is not None:
        short, long = sorted(settings["size"])
        settings |= {"size": (short, long) if canvas[0] <= canvas[1] else (long, short), "oriented": True}
    return Resize(**settings)


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
        outputs = ((recorded or {}).get("model") or {}).get("outputs")  # what a mask classifier was trained for
        known = {"outputs": outputs} if outputs and architecture.startswith(tuple(f"{arch}_" for arch in ARCHS)) else {}
        network = create_model(architecture, num_classes=count, **known)
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
    masks = re.fullmatch(rf"({'|'.join(ARCHS)})_(\w+?)(?:_(coco|ade20k|cityscapes))?(?:_(sem|pan|ins))?", name)
    if masks:
        method, backbone, data, kind = masks.groups()
        data = data or ("ade20k" if method.startswith("vw") else "coco")
        task, recipe = "panoptic", f"{_mask_recipe(method, data, kind)} --backbone {backbone}"
        recipe += f" --cfg-options model.arch={method}" if method.startswith("vw") else ""
    packaged = [other for other, entry in index().items() if entry.packaged and entry.task == task]
    ready = f". Ready without download: {', '.join(packaged)}" if packaged else ""
    near = did_you_mean(name, [other for other in index() if other.startswith(f"{name.split('_')[0]}_")])
    return (
        f"train it (python tools/train.py {recipe}) and give the checkpoint that this writes with --checkpoint, or one from "
        f"elsewhere{ready}.{near}"
    )


def _mask_recipe(method: str, data: str, kind: str | None) -> str:
    """The recipe of a mask classifier; of those that it lacks for a `kind` of results, the panoptic one gives them, too."""
    if method.startswith("vw"):
        return f"configs/mask2former_{data}.py"
    if kind == "ins" and (method, data) == ("mask2former", "coco"):
        return f"configs/{method}_{data}_instance.py"
    if kind == "sem" and method != "kmax" and data != "coco":
        return f"configs/{method}_{data}.py"
    return f"configs/{method}_{data}_panoptic.py"


def _read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    from mmvit.engine import check_config, load_config

    config = load_config(path)
    check_config(config)
    return config.to_dict()


#: Names for the class counts of well-known data sets, by task.
_KNOWN = {
    "panoptic": {len(names): names for names in (COCO_PANOPTIC_CLASSES, COCO_CLASSES, ADE20K_CLASSES, CITYSCAPES_CLASSES)},
    "detection": {len(COCO_CLASSES): COCO_CLASSES},
    "semantic": {len(ADE20K_CLASSES): ADE20K_CLASSES, len(CITYSCAPES_CLASSES): CITYSCAPES_CLASSES},
}


def _class_names(model: nn.Module, given: Sequence[str] | None, meta: dict[str, Any]) -> tuple[str, ...]:
    count = model.num_classes
    names = tuple(given or meta.get("classes") or _KNOWN[model.task].get(count) or (f"class {i}" for i in range(count)))
    if len(names) != count:
        raise UserError(f"{len(names)} class names ({', '.join(names[:3])} ...) for a model with {count} classes: give as many")
    return names
