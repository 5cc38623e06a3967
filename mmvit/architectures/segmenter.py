"""Semantic segmentation: a backbone, a decode head on its four maps, and an auxiliary head in training.

Papers: UPerNet (arXiv 1807.10221), SegFormer (arXiv 2105.15203), VWFormer (arXiv 2404.16573).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmvit.data.structures import DataSample
from mmvit.errors import UserError, did_you_mean
from mmvit.losses import check_finite, pixel_accuracy, pixel_cross_entropy
from mmvit.registry import MODELS

from .base import Architecture, split_state
from .dense import label_map, slide

STRIDES = (4, 8, 16, 32)
_UNUSED_LOSS = dict(type="mmseg.CrossEntropyLoss", avg_non_ignore=True)  # mmseg's heads want one; `Segmenter.loss` is used
_SMALL = ("mit_b0", "mit_b1", "pvt_v2_b0", "pvt_v2_b1")  # backbones to which VWFormer pairs 128 channels


def head_settings(arch: str, backbone: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Decode head and auxiliary head (None: none) of a method with a backbone, as published.

    Methods: ``upernet``, ``segformer`` (mmsegmentation 1.2.2), ``vwformer`` (its ADE20K head) and ``vwformer_city``.
    """
    debug = backbone.endswith("_debug")
    if arch == "upernet":
        head = dict(type="mmseg.UPerHead", channels=32 if debug else 512)
        auxiliary = dict(type="mmseg.FCNHead", in_index=2, channels=16 if debug else 256, num_convs=1, concat_input=False)
        return head, auxiliary
    if arch == "segformer":
        return dict(type="mmseg.SegformerHead", channels=32 if debug else 256), None
    channels = 64 if debug else 128 if backbone in _SMALL else 512
    if arch == "vwformer":
        return dict(type="VWHead", channels=channels, short_cut=not backbone.startswith("swin_large")), None
    if arch == "vwformer_city":
        return dict(type="VWCityHead", channels=channels, num_heads=4 if debug else 16), None
    known = ("upernet", "segformer", "vwformer", "vwformer_city")
    raise UserError(f"Segmenter has no method {arch!r}.{did_you_mean(arch, known)} Known methods: {', '.join(known)}.")


def build_head(settings: dict[str, Any], feature_info: Sequence[tuple[int, int]], num_classes: int) -> nn.Module:
    """A decode head whose channels come from the backbone's `feature_info`; mmseg's heads by ``type="mmseg...."``."""
    channels = [c for c, _ in feature_info]
    if not settings["type"].startswith("mmseg."):
        return MODELS.build(dict(settings, in_channels=channels, num_classes=num_classes))
    index = settings.get("in_index", list(range(len(channels))))
    chosen = channels[index] if isinstance(index, int) else [channels[i] for i in index]
    defaults = dict(norm_cfg=dict(type="BN"), align_corners=False, dropout_ratio=0.1, loss_decode=_UNUSED_LOSS)
    if num_classes == 2:
        defaults["out_channels"] = 2  # mmseg suggests one channel for two classes; ours are always one per class
    head = MODELS.build({**defaults, **settings, "in_index": index, "in_channels": chosen, "num_classes": num_classes})
    nn.init.normal_(head.conv_seg.weight, std=0.01)
    nn.init.zeros_(head.conv_seg.bias)
    return head


@MODELS.register_module()
class Segmenter(Architecture):
    """Backbone and decode head; channels are wired from the backbone's `feature_info`.

    Args:
        arch: method, see `head_settings`, whose heads the following arguments change; None: they say all.
        num_classes: classes.
        backbone: name (`mmvit.list_backbones()`) or settings with a ``name``.
        decode_head: settings of the head; its type is ours or mmseg's (``mmseg.UPerHead``).
        auxiliary_head: settings of the second head, of which only the loss is used; False for none.
        auxiliary_weight: factor of its loss.
        backbone_pretrained: start training from the backbone's published weights: True, or a file, address or index name.
        data_preprocessor: settings of `SegPreprocessor`.
        test_cfg: ``mode`` (``whole`` or ``slide``); for ``slide`` ``crop_size`` and ``stride`` (height, width) of the windows
            and ``window_batch``, windows per forward pass.
        eval_size: longest and shortest side of pictures in evaluation, where no config says another.

    `forward` takes normalised images (N, 3, H, W) of any size; the modes are ``loss`` (dict), ``predict`` (the samples with
    ``pred_sem_seg``: class indices at the size of the original image) and ``tensor`` (logits (N, C, H/4, W/4)).
    """

    task = "semantic"

    def __init__(
        self,
        arch: str | None = None,
        num_classes: int = 150,
        *,
        backbone: str | dict = "swin_tiny",
        decode_head: dict | None = None,
        auxiliary_head: dict | bool | None = None,
        auxiliary_weight: float = 0.4,
        backbone_pretrained: bool | str = False,
        data_preprocessor: dict | None = None,
        test_cfg: dict | None = None,
        eval_size: Sequence[int] = (2048, 512),
    ):
        preprocessor = {"type": "SegPreprocessor", **(data_preprocessor or {})}
        super().__init__(num_classes, backbone, STRIDES, backbone_pretrained, preprocessor)
        head, auxiliary = head_settings(arch, self.backbone_name) if arch is not None else ({}, None)
        head = {**head, **(decode_head or {})}
        if "type" not in head:
            raise UserError("Segmenter needs a method, e.g. arch='upernet', or decode_head=dict(type=...).")
        self.arch, self.auxiliary_weight = arch, auxiliary_weight
        self.decode_head = build_head(head, self.backbone.feature_info, num_classes)
        if auxiliary_head is not False and (auxiliary or auxiliary_head):
            settings = {**(auxiliary or {}), **(auxiliary_head if isinstance(auxiliary_head, dict) else {})}
            self.auxiliary_head = build_head(settings, self.backbone.feature_info, num_classes)
        self.test_cfg = check_test_cfg(test_cfg or {})
        self.eval_resize = dict(size=tuple(eval_size), keep_ratio=True, interpolation="cv2_bilinear")

    def forward(
        self, inputs: Tensor | list, data_samples: list[DataSample] | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        return self.decode_head(self.backbone(inputs))

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """``loss_ce`` (and ``loss_aux``), and ``acc_seg``, the share of right pixels; labels are those of the samples.

        Raises:
            NonFiniteError: logits that are not finite.
        """
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples])
        self._check_labels(labels, data_samples)
        maps = self.backbone(inputs)
        logits = self._head_logits(self.decode_head, maps, labels, "decode_head", data_samples)
        losses = {"loss_ce": pixel_cross_entropy(logits, labels), "acc_seg": pixel_accuracy(logits.detach(), labels)}
        if self.auxiliary_head is not None:
            logits = self._head_logits(self.auxiliary_head, maps, labels, "auxiliary_head", data_samples)
            losses["loss_aux"] = self.auxiliary_weight * pixel_cross_entropy(logits, labels)
        return losses

    def _head_logits(
        self, head: nn.Module, maps: Sequence[Tensor], labels: Tensor, name: str, samples: list[DataSample]
    ) -> Tensor:
        try:
            logits = head(maps)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"{type(head).__name__} normalises pooled maps over the batch, which takes two images per process at least: "
                "use --batch-size 2 or more (or several GPUs with synchronised batch norm)."
            ) from error
        check_finite({f"the logits of {name}": logits}, [s.metainfo.get("img_id", i) for i, s in enumerate(samples)])
        return F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)

    def _check_labels(self, labels: Tensor, samples: list[DataSample]) -> None:
        if not labels.is_cuda:  # on CUDA a check costs a synchronisation; the loss fails there, and `check_masks` ran before
            wrong = (labels >= self.num_classes) & (labels != 255)
            if wrong.any():
                bad = int(wrong.flatten(1).any(1).nonzero()[0])
                where = samples[bad].metainfo.get("mask_path") or samples[bad].metainfo.get("img_path", "")
                raise UserError(
                    f"{where} has the label {int(labels[wrong][0])}, but there are {self.num_classes} classes (0 to "
                    f"{self.num_classes - 1}; 255 is ignored). Correct the masks, or the names file."
                )

    def whole(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, C, H, W)."""
        logits = self.decode_head(self.backbone(images))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, C, H, W), by sliding windows where `test_cfg` says so."""
        if self.test_cfg["mode"] == "whole":
            return self.whole(images)
        window, stride, batch = (self.test_cfg[key] for key in ("crop_size", "stride", "window_batch"))
        return torch.stack([slide(image, self.whole, window, stride, batch) for image in images])

    @torch.no_grad()
    def predict(self, inputs: Tensor | list, data_samples: list[DataSample]) -> list[DataSample]:
        """Class indices at the size of the original images; `inputs` as `SegPreprocessor` gives them in evaluation."""
        if isinstance(inputs, Tensor):
            views = ([logits] for logits in self.logits(inputs))
        else:
            views = (self._views(image, sample) for image, sample in zip(inputs, data_samples, strict=True))
        for sample, logits in zip(data_samples, views, strict=True):
            sample.pred_sem_seg = PixelData(data=label_map(logits, tuple(sample.ori_shape)))
        return data_samples

    def _views(self, views: Tensor | list[Tensor], sample: DataSample) -> list[Tensor]:
        """Logits (C, h, w) of an image or of each of its views, flipped back."""
        if isinstance(views, Tensor):
            return [self.logits(views[None])[0]]
        return [
            logits.flip(-1) if flipped else logits
            for logits, flipped in zip((self.logits(view[None])[0] for view in views), sample.view_flips, strict=True)
        ]

    def rename(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of mmsegmentation or of the papers' code (``backbone.``, ``decode_head.``, ``auxiliary_head.``) -> ours."""
        parts, out = split_state(state_dict, "backbone", "decode_head", "auxiliary_head")
        for name, state in parts.items():
            convert = getattr(getattr(self, name), "convert", dict)  # mmseg's heads keep their names
            out |= {f"{name}.{k}": v for k, v in convert(state).items()}
        return out


def check_test_cfg(test_cfg: dict[str, Any]) -> dict[str, Any]:
    """`test_cfg` with its defaults; UserError where it makes no sense."""
    known = ("mode", "crop_size", "stride", "window_batch")
    for key in test_cfg:
        if key not in known:
            raise UserError(
                f"model.test_cfg.{key}: nothing reads this key.{did_you_mean(key, known)} Known: {', '.join(known)}."
            )
    test_cfg = {"mode": "whole", "window_batch": 4, **test_cfg}
    if test_cfg["mode"] == "whole":
        return test_cfg
    if test_cfg["mode"] != "slide":
        raise UserError(f"model.test_cfg.mode={test_cfg['mode']!r}: it must be 'whole' or 'slide'.")
    if not {"crop_size", "stride"} <= test_cfg.keys():
        raise UserError("model.test_cfg: mode 'slide' needs crop_size=(height, width) and stride=(height, width).")
    pairs = {
        key: (test_cfg[key],) * 2 if isinstance(test_cfg[key], int) else tuple(test_cfg[key]) for key in ("crop_size", "stride")
    }
    if any(not 1 <= step <= side for step, side in zip(pairs["stride"], pairs["crop_size"])):
        raise UserError(
            f"model.test_cfg: stride {pairs['stride']} must be between 1 and crop_size {pairs['crop_size']}, or windows miss "
            "pixels."
        )
    return {**test_cfg, **pairs}
