"""Mask classification: queries become classes and masks, and these semantic, instance and panoptic segmentations.

Papers: Mask2Former (arXiv 2112.01527), kMaX-DeepLab (arXiv 2207.04044), PEM (arXiv 2402.19422). They differ by their pixel
decoder, their query decoder and their losses.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmvit.backbones import find_backbone
from mmvit.data.structures import DataSample
from mmvit.errors import UserError, did_you_mean
from mmvit.heads.kmax_criterion import KMaXCriterion
from mmvit.heads.kmax_decoder import AuxiliarySemantic, convert_auxiliary
from mmvit.heads.mask_criterion import MaskCriterion, MaskTarget
from mmvit.registry import MODELS

from .base import Architecture, split_state
from .dense import label_map_of
from .mask_inference import Panoptic, instances, panoptic_by_argmax, panoptic_by_order, semantic_scores
from .rows import Rows

STRIDES = (4, 8, 16, 32)
OUTPUTS = ("panoptic", "instance", "semantic")
ARCHS: dict[str, dict[str, Any]] = {
    "mask2former": dict(neck=dict(type="MSDeformAttnPixelDecoder"), head=dict(type="QueryDecoder", num_layers=9)),
    "pem": dict(
        neck=dict(type="PEMPixelDecoder"),
        head=dict(type="QueryDecoder", num_layers=6, attention="prototype", pre_norm=True, project_inputs=True),
    ),
    "vwmask2former": dict(neck=dict(type="VWPixelDecoder"), head=dict(type="QueryDecoder", num_layers=9)),
    "vwdeformmask2former": dict(neck=dict(type="VWDeformAttnPixelDecoder"), head=dict(type="QueryDecoder", num_layers=9)),
    "kmax": dict(
        neck=dict(type="KMaXPixelDecoder"),
        head=dict(type="KMaXDecoder"),
        backbone=dict(resnet=dict(norm_eps=1e-3, norm_momentum=0.01), convnext=dict(kmax_padding=True)),
        data_preprocessor=dict(mean=(127.5,) * 3, std=(127.5,) * 3),
    ),
}
_SMALL_HEAD = dict(dim=32, num_heads=4, feedforward=64, num_layers=3, num_queries=20)
#: The same networks with small widths, for backbones of the size ``debug``.
DEBUG: dict[str, dict[str, Any]] = {
    "mask2former": dict(
        neck=dict(dim=64, mask_dim=32, num_layers=2, num_heads=4, feedforward=64),
        head=dict(dim=64, num_heads=4, feedforward=128, num_layers=3, num_queries=20),
    ),
    "pem": dict(neck=dict(dim=32, mask_dim=32), head=dict(dim=32, num_heads=4, feedforward=64, num_layers=3, num_queries=20)),
    "vwmask2former": dict(neck=dict(channels=64, dim=32, mask_dim=32, num_heads=4), head=_SMALL_HEAD),
    "vwdeformmask2former": dict(
        neck=dict(channels=64, dim=32, mask_dim=32, num_heads=4, num_layers=1, encoder_heads=4, feedforward=64),
        head=_SMALL_HEAD,
    ),
    "kmax": dict(
        neck=dict(widths=(16, 16, 8, 8), depths=(1, 1, 1, 1)), head=dict(dim=32, num_queries=20, num_layers=(1, 1, 1))
    ),
}


@MODELS.register_module()
class MaskSegmenter(Architecture):
    """Backbone, pixel decoder and query decoder; channels are wired from the backbone's `feature_info`.

    Args:
        arch: ``mask2former``, ``pem``, ``kmax``, ``vwmask2former`` or ``vwdeformmask2former`` (VWFormer's pixel decoders, the
            second behind Mask2Former's encoder); the following arguments change parts of it.
        num_classes: classes, things and stuff.
        things: indices of the classes whose objects are told apart; None: all of them.
        backbone: name (`mmvit.list_backbones()`) or settings with a ``name``.
        neck, head: settings of the pixel decoder and of the query decoder.
        criterion: settings of `MaskCriterion` or `KMaXCriterion`.
        auxiliary_head: kMaX-DeepLab's semantic head: True (from the stages 4, 8 and 32), ``coarse`` (Cityscapes: from stride
            32 only) or False.
        stem_map: give the pixel decoder the backbone's stem as a fifth map (kMaX-DeepLab on Cityscapes).
        backbone_pretrained: start training from the backbone's published weights: True, or a file, address or index name.
        data_preprocessor: settings of `MaskPreprocessor`.
        outputs: what `predict` makes: ``panoptic``, ``instance``, ``semantic``.
        test_cfg: thresholds of `panoptic_by_argmax` or, for kmax, `panoptic_by_order`.
        eval_size: longest and shortest side of pictures in evaluation, where no config says another.

    `forward` takes normalised images (N, 3, H, W); the modes are ``loss`` (dict of weighted losses), ``predict`` (the samples
    with the chosen results at the size of the original image) and ``tensor`` (class logits (N, Q, C + 1), mask logits
    (N, Q, H/4, W/4)).
    """

    task = "panoptic"

    def __init__(
        self,
        arch: str = "mask2former",
        num_classes: int = 133,
        *,
        things: Sequence[int] | None = None,
        backbone: str | dict = "resnet_50",
        neck: dict | None = None,
        head: dict | None = None,
        criterion: dict | None = None,
        auxiliary_head: bool | str | None = None,
        stem_map: bool = False,
        backbone_pretrained: bool | str = False,
        data_preprocessor: dict | None = None,
        outputs: Sequence[str] = OUTPUTS,
        test_cfg: dict | None = None,
        eval_size: Sequence[int] = (1333, 800),
    ):
        if arch not in ARCHS:
            raise UserError(f"MaskSegmenter has no method {arch!r}.{did_you_mean(arch, ARCHS)} It has {', '.join(ARCHS)}.")
        settings = ARCHS[arch]
        backbone = dict(name=backbone) if isinstance(backbone, str) else dict(backbone)
        own = settings.get("backbone", {}).get(backbone["name"].split("_")[0], {})
        stem = _with_stem(backbone["name"]) if stem_map else {}
        preprocessor = {"type": "MaskPreprocessor", **settings.get("data_preprocessor", {}), **(data_preprocessor or {})}
        super().__init__(num_classes, {**own, **stem, **backbone}, STRIDES, backbone_pretrained, preprocessor)
        small = DEBUG[arch] if self.backbone_name.endswith("_debug") else {}
        self.arch, self.things = arch, tuple(range(num_classes) if things is None else things)
        self.outputs, self.test_cfg = check_outputs(outputs), dict(test_cfg or {})
        self.scores_first = self.outputs == ("semantic",)  # as published for purely semantic models
        channels = [c for c, _ in self.backbone.feature_info]
        neck = {**settings["neck"], **small.get("neck", {}), **(neck or {})}
        self.neck = MODELS.build(dict(neck, in_channels=channels))
        head = {**settings["head"], **small.get("head", {}), **(head or {})}
        self.head = MODELS.build(
            dict(head, in_channels=self.neck.out_channels, mask_dim=self.neck.mask_dim, num_classes=num_classes)
        )
        self.criterion = (KMaXCriterion if arch == "kmax" else MaskCriterion)(**(criterion or {}))
        if arch == "kmax" and auxiliary_head is not False:
            dim = head.get("dim", 256)
            self.auxiliary_head = AuxiliarySemantic(channels[-4:], num_classes, auxiliary_head != "coarse", dim)
        self.eval_resize = dict(size=tuple(eval_size), keep_ratio=True)

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = "tensor") -> Any:
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        found = self.head(*self.neck(self.backbone(inputs)), all_layers=False)[-1]
        return found.logits, found.masks

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Weighted losses; raises `NonFiniteError` where predictions are not finite."""
        targets = [MaskTarget(sample.gt_segments.labels, sample.gt_segments.masks) for sample in data_samples]
        ids = [sample.metainfo.get("img_id", i) for i, sample in enumerate(data_samples)]
        maps = self.backbone(inputs)
        predictions = self.head(*self.neck(maps), all_layers=True)
        if self.auxiliary_head is None:
            return self.criterion(predictions, targets, ids)
        return self.criterion(predictions, targets, ids, semantic=self.auxiliary_head(maps[-4:]))

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """The chosen `outputs` at the original size: ``pred_panoptic_seg``, ``pred_instances``, ``pred_sem_seg``."""
        logits, masks = self(inputs)
        for sample, classes, mask in zip(data_samples, logits, masks, strict=True):
            self._results(sample, classes.float(), mask.float(), tuple(inputs.shape[-2:]))
        return data_samples

    def _results(self, sample: DataSample, classes: Tensor, masks: Tensor, padded: tuple[int, int]) -> None:
        process = Postprocess(classes, masks, padded, sample, self.arch == "kmax", self.things)
        if "panoptic" in self.outputs:
            found = process.panoptic(**self.test_cfg)
            sample.pred_panoptic_seg = PixelData(data=found.ids[None])
            sample.set_metainfo(dict(segments_info=found.segments))
        if "instance" in self.outputs:
            sample.pred_instances = process.instances(self.things)
        if "semantic" in self.outputs:
            scores = process.semantic(self.scores_first)
            sample.pred_sem_seg = PixelData(data=label_map_of(scores, classes))

    def rename(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the official code (``backbone.``, ``sem_seg_head.pixel_decoder.``, ``sem_seg_head.predictor.``) -> ours."""
        prefixes = {
            "sem_seg_head.pixel_decoder.": "neck.",
            "sem_seg_head.predictor._auxiliary_semantic_predictor.": "auxiliary_head.",
            "sem_seg_head.predictor.": "head.",
            "sem_seg_head.": "neck.",  # of the oldest checkpoints, which have no "pixel_decoder."
        }
        state = {}
        for key, value in state_dict.items():
            for theirs, ours in prefixes.items():
                key = key.replace(theirs, ours)
            if not key.startswith(("criterion.", "pixel_mean", "pixel_std")):
                state[key] = value
        parts, out = split_state(state, "backbone", "neck", "head", "auxiliary_head")
        for name in ("backbone", "neck", "head"):
            out |= {f"{name}.{k}": v for k, v in getattr(self, name).convert(parts[name]).items()}
        if self.auxiliary_head is not None:
            out |= {f"auxiliary_head.{k}": v for k, v in convert_auxiliary(parts["auxiliary_head"]).items()}
        return out

    def training_only(self) -> set[str]:
        """Prefixes of parameters that evaluation does not use."""
        return {"auxiliary_head."}


def _with_stem(name: str) -> dict[str, bool]:
    """The setting that makes backbone `name` return its stem; UserError where it has none."""
    if "with_stem" not in inspect.signature(find_backbone(name)[0].__init__).parameters:
        raise UserError(
            f"model.stem_map: backbone {name!r} does not return the map behind its stem; resnet_* and convnext_* do. Leave "
            "stem_map out, and give the pixel decoder (model.neck) settings of four maps."
        )
    return dict(with_stem=True)


class Postprocess:
    """The results of one image, at its original size.

    Args:
        classes: logits (Q, C + 1).
        masks: logits (Q, h, w) for the padded input.
        padded: (H, W) of the padded input.
        sample: its ``img_shape`` is the part of the input that is image, its ``ori_shape`` the original size.
        kmax: masks compete by a softmax; else each has a sigmoid.
        things: indices of thing classes.
    """

    def __init__(
        self, classes: Tensor, masks: Tensor, padded: tuple[int, int], sample: Any, kmax: bool, things: Sequence[int]
    ) -> None:
        self.classes, self.kmax, self.things = classes, kmax, things
        self.size, self.align = tuple(sample.ori_shape), kmax and padded[1] % 2 == 1
        self.small = Rows.of(masks).resized(*padded, self.align).cropped(*self._real_size(sample, padded))
        self.masks = self.small.resized(*self.size, self.align)

    def _real_size(self, sample: Any, padded: tuple[int, int]) -> tuple[int, int]:
        """The part of the padded input that is image; kMaX-DeepLab derives it from the original size."""
        if self.kmax and max(sample.img_shape) == max(padded):
            scale = max(padded) / max(self.size)
            height, width = (round(side * scale) for side in self.size)
            return min(height, padded[0]), min(width, padded[1])
        return tuple(sample.img_shape)

    def panoptic(self, **thresholds: float) -> Panoptic:
        """See `panoptic_by_argmax` and, for kMaX-DeepLab, `panoptic_by_order`."""
        rule = panoptic_by_order if self.kmax else panoptic_by_argmax
        return rule(self.classes, self.masks, self.things, **thresholds)

    def instances(self, things: Sequence[int] | None, top: int = 100) -> InstanceData:
        """See `mask_inference.instances`."""
        return instances(self.classes, self.masks, self.kmax, things, top)

    def semantic(self, scores_first: bool) -> Rows:
        """Scores (C, H, W); resized as scores (as published for purely semantic models) or made of resized masks."""
        if scores_first:
            return semantic_scores(self.classes, self.small, self.kmax).resized(*self.size, self.align)
        return semantic_scores(self.classes, self.masks, self.kmax)


def check_outputs(outputs: Sequence[str]) -> tuple[str, ...]:
    """`outputs` as a tuple; UserError for an unknown one."""
    for output in outputs:
        if output not in OUTPUTS:
            raise UserError(f"model.outputs: no {output!r}.{did_you_mean(output, OUTPUTS)} Choose from {', '.join(OUTPUTS)}.")
    return tuple(outputs)
