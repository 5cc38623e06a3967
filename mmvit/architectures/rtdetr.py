"""RT-DETR: real-time end-to-end object detection.

Papers: "DETRs Beat YOLOs on Real-time Object Detection" (arXiv 2304.08069), "RT-DETRv2: Improved Baseline with Bag-of-Freebies
for Real-Time Detection Transformer" (arXiv 2407.17140).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmvit.data.structures import DataSample
from mmvit.errors import UserError, did_you_mean
from mmvit.heads import select_detections
from mmvit.heads.rtdetr_head import DecoderOutput
from mmvit.losses import corners_to_centre
from mmvit.matching import Target
from mmvit.registry import MODELS

from .base import Architecture, split_state
from .convert_transformers import from_transformers

_SMALL = dict(neck=dict(hidden_dim=256, feedforward=1024, expansion=0.5))
_BASE = dict(neck=dict(hidden_dim=256, feedforward=1024, expansion=1.0), head=dict(num_layers=6))
_LARGE = dict(neck=dict(hidden_dim=384, feedforward=2048, expansion=1.0), head=dict(num_layers=6))

VARIANTS: dict[str, dict[str, Any]] = {
    "r18vd": {**_SMALL, "backbone": "presnet_18vd", "head": dict(num_layers=3)},
    "r34vd": {**_SMALL, "backbone": "presnet_34vd", "head": dict(num_layers=4)},
    "r50vd_m": {**_SMALL, "backbone": "presnet_50vd", "head": dict(num_layers=6, eval_idx=2)},
    "r50vd": {**_BASE, "backbone": "presnet_50vd"},
    "r101vd": {**_LARGE, "backbone": "presnet_101vd"},
    "hgnetv2_l": {**_BASE, "backbone": "hgnetv2_l"},
    "hgnetv2_x": {**_LARGE, "backbone": "hgnetv2_x"},
    "hgnetv2_h": dict(
        neck=dict(hidden_dim=512, feedforward=2048, expansion=1.0, num_layers=2), head=dict(num_layers=6), backbone="hgnetv2_h"
    ),
    "shapes": dict(
        backbone="presnet_shapes",
        neck=dict(hidden_dim=96, feedforward=192, expansion=0.5, num_heads=4),
        eval_size=(160, 160),
        head=dict(hidden_dim=96, num_heads=4, feedforward=192, num_layers=3, num_queries=30, num_denoising=24),
    ),
    "debug": dict(
        backbone="presnet_debug",
        neck=dict(hidden_dim=16, feedforward=16, expansion=0.5, num_heads=2),
        eval_size=(64, 64),
        head=dict(hidden_dim=16, num_heads=2, feedforward=16, num_layers=2, num_queries=10, num_denoising=4),
    ),
}


def variant(arch: str) -> dict[str, Any]:
    """Settings of a variant: a name of `VARIANTS`, ``v2_`` before it for RT-DETRv2, ``_dsp`` or ``_sp1``.. ``_sp3`` behind it.

    The suffixes stand for RT-DETRv2's discrete sampling and for 1 to 3 sampled points per level.
    """
    match = re.fullmatch(r"(v2_)?(.+?)(?:_(dsp|sp[123]))?", arch)
    v2, base, suffix = match.groups()
    if base not in VARIANTS or (suffix and not v2):
        known = [*VARIANTS, *(f"v2_{name}" for name in VARIANTS)]
        raise UserError(
            f"RT-DETR has no variant {arch!r}.{did_you_mean(arch, known)} Known variants: {', '.join(known)}, "
            "and those of v2 with _dsp, _sp1, _sp2 or _sp3."
        )
    settings = {"eval_size": (640, 640), **VARIANTS[base]}
    head = dict(settings["head"], version=2 if v2 else 1)
    if suffix == "dsp":
        head["sampling"] = "discrete"
    elif suffix:
        head["num_points"] = [int(suffix[-1])] * 3
    return {**settings, "head": head}


@MODELS.register_module()
class RTDETR(Architecture):
    """Backbone, hybrid encoder and decoder; channels are wired from the backbone's `feature_info`.

    Args:
        arch: variant, see `variant`; the following arguments change parts of it.
        num_classes: object classes.
        backbone: name (`mmvit.list_backbones()`) or settings with a ``name``.
        neck, head: settings of `HybridEncoder` and `RTDETRHead`.
        backbone_pretrained: start training from the backbone's published weights: True, or a file, address or index name.
        data_preprocessor: settings of `RTDETRPreprocessor`.
        top: detections kept per image.

    `forward` takes preprocessed images (N, 3, H, W) in [0, 1], sides multiples of 32; the modes are ``loss`` (dict of weighted
    losses), ``predict`` (the samples with ``pred_instances``: boxes in pixels of the original image) and ``tensor``
    (logits (N, Q, C) and normalised centre boxes (N, Q, 4)).
    """

    task = "detection"

    def __init__(
        self,
        arch: str = "r50vd",
        num_classes: int = 80,
        *,
        backbone: str | dict | None = None,
        neck: dict | None = None,
        head: dict | None = None,
        backbone_pretrained: bool | str = False,
        data_preprocessor: dict | None = None,
        top: int = 300,
    ):
        settings = variant(arch)
        backbone = settings["backbone"] if backbone is None else backbone
        preprocessor = {"type": "RTDETRPreprocessor", **(data_preprocessor or {})}
        super().__init__(num_classes, backbone, (8, 16, 32), backbone_pretrained, preprocessor)
        self.arch, self.top = arch, top
        self.eval_resize = dict(size=settings["eval_size"])
        channels = [c for c, _ in self.backbone.feature_info]
        neck = {"type": "HybridEncoder", **settings["neck"], **(neck or {})}
        self.neck = MODELS.build(dict(neck, in_channels=channels))
        head = {"type": "RTDETRHead", **settings["head"], **(head or {})}
        self.head = MODELS.build(dict(head, in_channels=self.neck.out_channels, num_classes=num_classes))

    def extract(self, inputs: Tensor) -> list[Tensor]:
        """Images -> the neck's levels."""
        return self.neck(self.backbone(inputs))

    def detect(self, inputs: Tensor, all_layers: bool = False) -> DecoderOutput:
        """Images -> decoder predictions."""
        return self.head(self.extract(inputs), all_layers=all_layers)

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = "tensor") -> Any:
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        return self.detect(inputs).layers[-1]

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Weighted losses; raises `NonFiniteError` where predictions or losses are not finite."""
        targets = []
        for sample in data_samples:
            height, width = sample.batch_input_shape
            objects = sample.gt_instances
            scale = objects.bboxes.new_tensor([width, height, width, height])
            targets.append(Target(objects.labels, corners_to_centre(objects.bboxes / scale)))
        return self.head.loss(self.extract(inputs), targets, [s.metainfo.get("img_id", i) for i, s in enumerate(data_samples)])

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """Detections in pixels of the original images, best first."""
        logits, boxes = self.detect(inputs).layers[-1]
        sizes = boxes.new_tensor([_pixels(s) for s in data_samples])
        for sample, (corners, scores, labels) in zip(data_samples, select_detections(logits, boxes, sizes, self.top)):
            sample.pred_instances = InstanceData(bboxes=corners, scores=scores, labels=labels)
        return data_samples

    def set_eval_layers(self, count: int) -> None:
        """Evaluate with the first `count` decoder layers only."""
        self.head.set_eval_layers(count)

    def deploy(self) -> RTDETR:
        """Merge normalisations and branches into convolutions, drop unused layers, lay weights out channels-last; in place.

        The boxes stay the same (1e-4); training is no longer possible. Anchors and positions are cached per input size.
        """
        super().deploy()
        del self.head.layers[self.head.eval_layers :]
        return self

    def rename(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the official code (v1 or v2) or of `transformers`' RT-DETR -> one with our names."""
        if any(k.startswith("model.backbone.") for k in state_dict):
            state_dict = from_transformers(state_dict)
        if any(k.startswith("neck.") for k in state_dict):
            return state_dict
        parts, out = split_state(state_dict, "backbone", "encoder", "decoder")
        for part, ours in (("backbone", "backbone"), ("encoder", "neck"), ("decoder", "head")):
            out |= {f"{ours}.{k}": v for k, v in getattr(self, ours).convert(parts[part]).items()}
        return out

    def training_only(self) -> set[str]:
        """Prefixes of parameters that evaluation does not use."""
        unused = range(self.head.eval_layers, len(self.head.layers))
        return {
            "head.denoising_class_embed",
            *(f"head.{part}.{i}." for i in unused for part in ("layers", "dec_score_head", "dec_bbox_head")),
        }


def _pixels(sample: DataSample) -> tuple[float, float]:
    """Width and height, in pixels of the original image, of the (padded) network input."""
    (height, width), (real_h, real_w), (ori_h, ori_w) = sample.batch_input_shape, sample.img_shape, sample.ori_shape
    return width * ori_w / real_w, height * ori_h / real_h
