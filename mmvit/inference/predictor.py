"""`Predictor`: pictures in, detections out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from PIL import Image
from torch import nn

from mmvit.architectures import create_model, list_models, load_weights
from mmvit.data import COCO_CATEGORY_IDS, COCO_CLASSES, DataSample, PackDetInputs, Resize
from mmvit.data.images import ImageLike, read_image
from mmvit.errors import UserError, did_you_mean
from mmvit.inference.trained import build_model, recorded_config, recorded_resize
from mmvit.weights import load_checkpoint, load_into, resolve
from mmvit.weights.catalogue import is_published, published


@dataclass
class Detections:
    """What was found in one picture, best first.

    Attributes:
        boxes: float32 (k, 4), x1 y1 x2 y2 in pixels of the original picture.
        scores: float32 (k,), from 0 to 1.
        labels: int64 (k,), positions in `classes`.
        classes: names of all classes that the model knows.
        image_size: (height, width) of the original picture.
        cat_ids: category id of each class in the annotation files; 1, 2, 3 ... where none are known.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    cat_ids: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.cat_ids = self.cat_ids or _category_ids(self.classes)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.classes[label] for label in self.labels]

    def filter(self, score_thr: float) -> Detections:
        """The detections with a score of at least `score_thr`."""
        keep = self.scores >= score_thr
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO results: one dict per detection with ``image_id, category_id, category_name, bbox [x, y, w, h], score``."""
        sizes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).astype(float)
        return [
            {
                "image_id": image_id,
                "category_id": int(self.cat_ids[label]),
                "category_name": self.classes[label],
                "bbox": [round(side, 3) for side in box.tolist()],
                "score": round(float(score), 6),
            }
            for box, score, label in zip(sizes, self.scores, self.labels)
        ]


def _category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    return COCO_CATEGORY_IDS if tuple(classes) == COCO_CLASSES else tuple(range(1, len(classes) + 1))


class Predictor:
    """Runs a detector on pictures of any size and kind.

    ``Predictor("rtdetr_r50")("img.jpg")`` downloads the official COCO weights at the first use and returns a list with one
    `Detections`; ``Predictor(checkpoint="work_dirs/mine/best.pth")`` uses a model of your own.

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

    Attributes:
        model: the network, in evaluation mode.
        classes: tuple of class names; labels are positions in it.
        resize: the transform that makes a network input of a picture; as in training where the checkpoint says.

    Raises:
        UserError: unknown name, weights that cannot be had or do not fit, device that is absent.
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
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give at least 1")
        if config is not None and model is not None:
            raise UserError(f"both a config ({config}) and a model are given: use one of them")
        self.device = pick_device(device)
        network, meta, resize = _load(model, config, checkpoint, classes)
        self.model = network.to(self.device).eval()
        if deploy:
            self.model.deploy()
        self.score_thr, self.batch_size = score_thr, batch_size
        self.resize = Resize(**(resize or {"size": network.eval_size}))
        self.classes = _class_names(network, classes, meta)
        self.cat_ids = tuple(int(i) for i in (meta.get("dataset_meta") or meta).get("cat_ids", ())) if classes is None else ()
        self._pack = PackDetInputs()

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> list[Detections]:
        """Detect in one picture or in several.

        Args:
            images: what `read_image` takes (path, bytes, RGB array, PIL image), or an iterable of these.

        Returns:
            One `Detections` per picture, in order; a list of one for a single picture.
        """
        if isinstance(images, (str, bytes, os.PathLike, np.ndarray, Image.Image)):
            images = [images]
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Detections]:
        """Like a call, but reads and yields batch by batch, so that any number of pictures fits in memory."""
        remaining = iter(images)
        while batch := [read_image(image) for image in islice(remaining, self.batch_size)]:
            yield from self._predict(batch)

    def _predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        packed = [self._packed(image) for image in images]
        if len({item["inputs"].shape for item in packed}) == 1:
            samples = self._forward(packed)
        else:  # resized with their aspect ratio kept
            samples = [self._forward([item])[0] for item in packed]
        return [self._detections(sample.pred_instances, image.shape[:2]) for sample, image in zip(samples, images)]

    def _packed(self, image: np.ndarray) -> dict[str, Any]:
        """uint8 (H, W, 3) -> the dict that the data pipeline makes of it, with ``inputs`` uint8 (3, h, w)."""
        size = image.shape[:2]
        return self._pack(
            self.resize(
                {
                    "img": image,
                    "img_id": 0,
                    "img_path": "",
                    "height": size[0],
                    "width": size[1],
                    "ori_shape": size,
                    "img_shape": size,
                }
            )
        )

    def _forward(self, packed: Sequence[dict[str, Any]]) -> list[DataSample]:
        try:
            with torch.inference_mode():
                return self.model.test_step({key: [item[key] for item in packed] for key in ("inputs", "data_samples")})
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {self.device} with {len(packed)} pictures at once: use a smaller batch size, or device 'cpu'"
            ) from error

    def _detections(self, found: InstanceData, image_size: tuple[int, int]) -> Detections:
        order = torch.argsort(found.scores.float(), descending=True, stable=True)
        return Detections(
            found.bboxes[order].float().cpu().numpy(),
            found.scores[order].float().cpu().numpy(),
            found.labels[order].cpu().numpy().astype(np.int64),
            self.classes,
            tuple(image_size),
            self.cat_ids,
        ).filter(self.score_thr)


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


Loaded = tuple[nn.Module, dict[str, Any], "dict[str, Any] | None"]  # model with weights, meta data, settings of Resize


def _load(
    model: str | nn.Module | None,
    config: str | os.PathLike[str] | None,
    checkpoint: str | os.PathLike[str] | None,
    classes: Sequence[str] | None,
) -> Loaded:
    """The model with its weights, by what the user named."""
    if isinstance(model, nn.Module):
        meta = load_weights(model, resolve(checkpoint)) if checkpoint is not None else {}
        return model, meta, recorded_resize(recorded_config(meta))
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
    return network, meta, recorded_resize(recorded)


def _architecture(name: str, published_weights: bool) -> str:
    """The name that `create_model` knows for a published name."""
    architecture = published(name).architecture if is_published(name) else name
    if architecture not in list_models():
        raise UserError(f"there is no model {name!r}.{did_you_mean(name, list_models())} Models: {', '.join(list_models())}")
    if published_weights and not is_published(name):
        raise UserError(f"there are no published weights for {name!r}: give a checkpoint")
    return architecture


def _read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    from mmvit.engine import check_config, load_config

    config = load_config(path)
    check_config(config)
    return config.to_dict()


def _class_names(model: nn.Module, given: Sequence[str] | None, meta: dict[str, Any]) -> tuple[str, ...]:
    count = model.num_classes
    names = tuple(
        given or meta.get("classes") or (COCO_CLASSES if count == len(COCO_CLASSES) else (f"class {i}" for i in range(count)))
    )
    if len(names) != count:
        raise UserError(f"{len(names)} class names ({', '.join(names[:3])} ...) for a model with {count} classes: give as many")
    return names
