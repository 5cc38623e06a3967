"""Detectors on a feature pyramid, with or without masks: Mask R-CNN, Cascade Mask R-CNN, RetinaNet.

The pyramid and the heads are mmdetection's; the backbone is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmvit.data.structures import DataSample
from mmvit.errors import UserError
from mmvit.losses import check_finite
from mmvit.ops.sampling import at_least_float32
from mmvit.registry import MODELS

from .base import Architecture, split_state
from .box_masks import ObjectMasks, paste_rle
from .detector_settings import STRIDES, detector_settings, merge, wired

_MASKS = 100  # whose maps are computed at once


@MODELS.register_module()
class Detector(Architecture):
    """Backbone, feature pyramid and heads; channels are wired from the backbone's `feature_info`.

    Args:
        arch: method, see `detector_settings`; the following dicts change its published settings, key by key.
        num_classes: object classes.
        backbone: name (`mmvit.list_backbones()`) or settings with a ``name``.
        neck, rpn_head, roi_head, bbox_head: settings of mmdet's parts (``type="mmdet...."`` for another one).
            ``roi_head=dict(mask_head=None)`` leaves the masks out; ``bbox_head`` is RetinaNet's.
        train_cfg, test_cfg: how boxes are matched, sampled and selected, in mmdet's terms.
        backbone_pretrained: start training from the backbone's published weights: True, or a file, address or index name.
        data_preprocessor: settings of `DetPreprocessor`.

    Attributes:
        with_mask: whether objects get masks.

    `forward` takes normalised images (N, 3, H, W), sides multiples of 32; the modes are ``loss`` (dict), ``predict`` (the
    samples with ``pred_instances``: boxes in pixels of the original image, best first, and masks of its size as COCO RLE) and
    ``tensor`` (what the heads give, before any selection of the last stage).
    """

    task = "detection"

    def __init__(
        self,
        arch: str = "mask_rcnn",
        num_classes: int = 80,
        *,
        backbone: str | dict = "resnet_50",
        neck: dict | None = None,
        rpn_head: dict | None = None,
        roi_head: dict | None = None,
        bbox_head: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        backbone_pretrained: bool | str = False,
        data_preprocessor: dict | None = None,
    ):
        debug = (backbone if isinstance(backbone, str) else backbone["name"]).endswith("_debug")
        settings = detector_settings(arch, debug)
        changes = dict(
            neck=neck, rpn_head=rpn_head, roi_head=roi_head, bbox_head=bbox_head, train_cfg=train_cfg, test_cfg=test_cfg
        )
        changes = {part: change for part, change in changes.items() if change}
        absent = [part for part in changes if part not in settings]
        if absent:
            raise UserError(f"model.{absent[0]}: {arch} has no such part; it has {', '.join(settings)}.")
        preprocessor = {"type": "DetPreprocessor", **(data_preprocessor or {})}
        super().__init__(num_classes, backbone, STRIDES[arch], backbone_pretrained, preprocessor)
        self.arch = arch
        channels = [c for c, _ in self.backbone.feature_info]
        settings = wired(merge(settings, changes), channels, num_classes)
        train, test = settings["train_cfg"], settings["test_cfg"]
        self.neck = _build("neck", settings["neck"])
        self.rpn_head = self.roi_head = self.bbox_head = None
        if "roi_head" in settings:
            self.rpn_head = _build("rpn_head", dict(settings["rpn_head"], train_cfg=train["rpn"], test_cfg=test["rpn"]))
            self.roi_head = _build("roi_head", dict(settings["roi_head"], train_cfg=train["rcnn"], test_cfg=test["rcnn"]))
            self.proposals_in_training = ConfigDict(train["rpn_proposal"])
        else:
            self.bbox_head = _build("bbox_head", dict(settings["bbox_head"], train_cfg=train, test_cfg=test))
        self.eval_resize = dict(size=(160, 160) if debug else (800, 1333), keep_ratio=True, interpolation="cv2_bilinear")

    @property
    def with_mask(self) -> bool:
        return self.roi_head is not None and self.roi_head.with_mask

    def extract(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Images -> the pyramid's levels, in float32 also under autocast: boxes are rounded to the type of the maps."""
        return tuple(at_least_float32(level) for level in self.neck(self.backbone(inputs)))

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = "tensor") -> Any:
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        levels = self.extract(inputs)
        if self.roi_head is None:
            return self.bbox_head(levels)
        samples = self._mmdet_samples([DataSample(metainfo=dict(img_shape=tuple(inputs.shape[-2:]))) for _ in inputs], inputs)
        return self.roi_head.forward(levels, self.rpn_head.predict(levels, samples, rescale=False), samples)

    # -- training ------------------------------------------------------------------------------------

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """The losses of all parts, and ``acc``, the share of right classes among the sampled boxes (percent).

        Raises:
            UserError: objects without masks where there is a mask head, or labels that the model has no class for.
            NonFiniteError: losses that are not finite.
        """
        self._check_objects(data_samples)
        levels = self.extract(inputs)
        samples = self._mmdet_samples(data_samples, inputs, with_objects=True)
        if self.roi_head is None:
            losses = self.bbox_head.loss(levels, samples)
        else:
            losses, proposals = self.rpn_head.loss_and_predict(
                levels, [_one_class(sample) for sample in samples], proposal_cfg=self.proposals_in_training
            )
            losses = {**losses, **self.roi_head.loss(levels, proposals, samples)}
        levels_of = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in losses.items()}
        losses = {name: sum(level.mean() for level in values) for name, values in levels_of.items()}
        check_finite(losses, [s.metainfo.get("img_id", i) for i, s in enumerate(data_samples)])
        return losses

    def _check_objects(self, data_samples: Sequence[DataSample]) -> None:
        for sample in data_samples:
            objects = sample.gt_instances
            where = f"image {sample.metainfo.get('img_id', '')} ({sample.metainfo.get('img_path', '')})"
            if self.with_mask and "masks" not in objects:
                raise UserError(
                    f"{where} has boxes but no masks, which {self.arch} learns: set with_mask=True in the dataset and in "
                    "LoadAnnotations, or model.roi_head=dict(mask_head=None) for boxes only."
                )
            labels = objects.labels
            if not labels.is_cuda and len(labels) and int(labels.max()) >= self.num_classes:  # on CUDA it would synchronise
                raise UserError(
                    f"{where} has an object of label {int(labels.max())}, but there are {self.num_classes} classes (0 to "
                    f"{self.num_classes - 1})."
                )

    def _mmdet_samples(self, data_samples: Sequence[DataSample], inputs: Tensor, with_objects: bool = False) -> list[Any]:
        """The samples as mmdet's heads take them."""
        from mmdet.structures import DetDataSample

        converted, divisor = [], self.data_preprocessor.divisor
        for sample in data_samples:
            height, width = sample.img_shape
            meta = dict(
                img_shape=(height, width),
                pad_shape=(-(-height // divisor) * divisor, -(-width // divisor) * divisor),
                batch_input_shape=tuple(inputs.shape[-2:]),
            )
            other = DetDataSample(metainfo=meta)
            if with_objects:
                objects = sample.gt_instances
                other.gt_instances = InstanceData(bboxes=objects.bboxes, labels=objects.labels)
                if self.with_mask:
                    other.gt_instances.masks = ObjectMasks(objects.masks)
            converted.append(other)
        return converted

    # -- inference -----------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """Detections in pixels of the original images, best first."""
        levels = self.extract(inputs)
        samples = self._mmdet_samples(data_samples, inputs)
        if self.roi_head is None:
            found = self.bbox_head.predict(levels, samples, rescale=False)
        else:
            proposals = self.rpn_head.predict(levels, samples, rescale=False)
            metas = [sample.metainfo for sample in samples]
            found = self.roi_head.predict_bbox(levels, metas, proposals, self.roi_head.test_cfg, rescale=False)
        for index, (sample, objects) in enumerate(zip(data_samples, found, strict=True)):
            (height, width), (ori_height, ori_width) = sample.img_shape, sample.ori_shape
            scale = objects.bboxes.new_tensor([ori_width / width, ori_height / height] * 2)
            result = InstanceData(bboxes=objects.bboxes * scale, scores=objects.scores, labels=objects.labels)
            if self.with_mask:
                maps = self._mask_maps(levels, index, objects)
                threshold = self.roi_head.test_cfg.mask_thr_binary
                result.masks = paste_rle(maps, result.bboxes, (ori_height, ori_width), threshold)
            sample.pred_instances = result
        return data_samples

    def _mask_maps(self, levels: Sequence[Tensor], index: int, objects: InstanceData) -> Tensor:
        """Mask probabilities (n, h, w) of the boxes of image `index`; a cascade's are the mean over its stages."""
        extractors, heads = self.roi_head.mask_roi_extractor, self.roi_head.mask_head
        stages = list(zip(extractors, heads)) if isinstance(heads, nn.ModuleList) else [(extractors, heads)]
        maps = []
        for boxes, labels in zip(objects.bboxes.split(_MASKS), objects.labels.split(_MASKS)):
            rois = torch.cat([boxes.new_full((len(boxes), 1), index), boxes], 1)
            total = 0.0
            for extractor, head in stages:
                logits = head(extractor(levels[: extractor.num_inputs], rois)).float()
                channel = torch.zeros_like(labels) if head.class_agnostic else labels
                total = total + logits[torch.arange(len(rois), device=rois.device), channel].sigmoid()
            maps.append(total / len(stages))
        return torch.cat(maps)

    def deploy(self) -> Detector:
        """Merge normalisations and branches into convolutions; in place, the boxes stay (1e-4). Training ends here."""
        from mmcv.cnn.utils import fuse_conv_bn

        super().deploy()
        fuse_conv_bn(self.neck)
        if self.roi_head is not None:
            fuse_conv_bn(self.roi_head)
        return self.requires_grad_(False).to(memory_format=torch.channels_last)

    # -- weights -------------------------------------------------------------------------------------

    def rename(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of mmdetection 2 and 3, or of the papers' repositories that build on it -> ours; only the backbone's differ."""
        parts, out = split_state(state_dict, "backbone")
        return out | {f"backbone.{k}": v for k, v in self.backbone.convert(parts["backbone"]).items()}


def _one_class(sample: Any) -> Any:
    """An mmdet sample whose objects are all of class 0, without masks: what proposals are trained on."""
    objects = sample.gt_instances
    boxes = InstanceData(bboxes=objects.bboxes, labels=torch.zeros_like(objects.labels))
    return type(sample)(metainfo=sample.metainfo, gt_instances=boxes)


def _build(part: str, settings: dict[str, Any]) -> nn.Module:
    """A part of mmdet, initialised as published."""
    import mmdet.models  # noqa: F401 - fills the registry
    from mmdet.registry import MODELS as MMDET

    with DefaultScope.overwrite_default_scope("mmdet"):
        try:
            module = MMDET.build(ConfigDict(settings))
        except (TypeError, KeyError) as error:
            raise UserError(f"model.{part}: mmdet does not take these settings: {error}") from error
        module._dump_init_info = lambda: None  # MMEngine would log a line for each parameter
        module.init_weights()
    del module._dump_init_info
    return module
