"""Published settings of the detectors that are built of mmdetection's parts, as that library (3.3) has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmvit.errors import UserError, did_you_mean

Settings = dict[str, Any]

ARCHS = ("mask_rcnn", "cascade_mask_rcnn", "cascade_mask_rcnn_2fc", "retinanet")
#: Strides of the backbone's maps that the pyramid is made of.
STRIDES = {arch: (8, 16, 32) if arch == "retinanet" else (4, 8, 16, 32) for arch in ARCHS}
_STAGES = ((0.5, (0.1, 0.1, 0.2, 0.2)), (0.6, (0.05, 0.05, 0.1, 0.1)), (0.7, (0.033, 0.033, 0.067, 0.067)))  # of a cascade


def detector_settings(arch: str, debug: bool = False) -> Settings:
    """Parts and training and test settings of a detector, by name of the part.

    Args:
        arch: ``mask_rcnn`` (arXiv 1703.06870); ``cascade_mask_rcnn`` (1906.09756) with box heads of four convolutions and a
            GIoU loss, the form in which the papers of Swin, ConvNeXt and others use it; ``cascade_mask_rcnn_2fc``, the original
            one with two linear layers; ``retinanet`` (1708.02002).
        debug: small heads and few samples, for small backbones.

    Raises:
        UserError: unknown `arch`.
    """
    if arch not in ARCHS:
        raise UserError(f"Detector has no method {arch!r}.{did_you_mean(arch, ARCHS)} Known methods: {', '.join(ARCHS)}.")
    channels = 64 if debug else 256
    if arch == "retinanet":
        return _retinanet(channels)
    settings = _two_stage(channels, samples=64 if debug else 512)
    if debug:
        few = dict(nms_pre=200, max_per_img=100)
        settings = merge(settings, dict(train_cfg=dict(rpn_proposal=few), test_cfg=dict(rpn=few)))
    width = 128 if debug else 1024
    if arch == "mask_rcnn":
        return merge(settings, dict(roi_head=dict(bbox_head=_box_head(width))))
    stages = [
        _box_head_2fc(width, stds) if arch == "cascade_mask_rcnn_2fc" else _box_head_4conv(channels, width, stds)
        for _, stds in _STAGES
    ]
    return merge(settings, _cascade(stages, settings["train_cfg"]["rcnn"]))


def wired(settings: Settings, in_channels: Sequence[int], num_classes: int) -> Settings:
    """`settings` with the channels of the backbone's maps, those of the pyramid, and the number of classes in all parts."""
    channels = settings["neck"]["out_channels"]
    settings = merge(settings, dict(neck=dict(in_channels=list(in_channels))))
    if "bbox_head" in settings:
        return merge(settings, dict(bbox_head=dict(in_channels=channels, num_classes=num_classes)))
    head, extractor = dict(in_channels=channels, num_classes=num_classes), dict(out_channels=channels)
    parts = dict(bbox_head=head, mask_head=head, bbox_roi_extractor=extractor, mask_roi_extractor=extractor)
    present = {name: value for name, value in parts.items() if settings["roi_head"].get(name)}
    return merge(settings, dict(rpn_head=dict(in_channels=channels), roi_head=present))


def merge(base: Settings, changes: Mapping[str, Any] | None) -> Settings:
    """`base` with the values of `changes`, dicts merged key by key.

    Changes of a list of dicts (the stages of a cascade) that are one dict go to each of them; other values replace.
    """
    merged = dict(base)
    for key, value in (changes or {}).items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[key] = merge(before, value)
        elif isinstance(value, Mapping) and isinstance(before, list):
            merged[key] = [merge(stage, value) for stage in before]
        else:
            merged[key] = value
    return merged


def _two_stage(channels: int, samples: int) -> Settings:
    """Pyramid, proposals and masks; the box head is missing."""
    sampler = dict(type="RandomSampler", neg_pos_ub=-1)
    proposals = dict(max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0)
    return dict(
        neck=dict(type="FPN", out_channels=channels, num_outs=5),
        rpn_head=dict(
            type="RPNHead",
            feat_channels=channels,
            anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
            bbox_coder=_coder((1.0,) * 4),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        roi_head=dict(
            type="StandardRoIHead",
            bbox_roi_extractor=_extractor(7),
            mask_roi_extractor=_extractor(14),
            mask_head=dict(
                type="FCNMaskHead",
                num_convs=4,
                conv_out_channels=channels,
                loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(_assigner(0.7, 0.3, 0.3), match_low_quality=True),
                sampler=dict(sampler, num=samples // 2, pos_fraction=0.5, add_gt_as_proposals=False),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=dict(proposals, nms_pre=2000),
            rcnn=dict(
                assigner=dict(_assigner(0.5, 0.5, 0.5), match_low_quality=True),
                sampler=dict(sampler, num=samples, pos_fraction=0.25, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            ),
        ),
        test_cfg=dict(
            rpn=dict(proposals, nms_pre=1000),
            rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
        ),
    )


def _cascade(stages: Sequence[Settings], training: Settings) -> Settings:
    """What `_two_stage` changes to for a cascade of box heads; `training`: settings of its one."""
    return dict(
        rpn_head=dict(loss_bbox=dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0)),
        roi_head=dict(type="CascadeRoIHead", num_stages=len(stages), stage_loss_weights=[1, 0.5, 0.25], bbox_head=list(stages)),
        train_cfg=dict(
            rpn=dict(allowed_border=0),
            rpn_proposal=dict(max_per_img=2000),
            rcnn=[dict(training, assigner=dict(_assigner(iou, iou, iou), match_low_quality=False)) for iou, _ in _STAGES],
        ),
    )


def _retinanet(channels: int) -> Settings:
    return dict(
        neck=dict(type="FPN", out_channels=channels, add_extra_convs="on_input", num_outs=5),
        bbox_head=dict(
            type="RetinaHead",
            feat_channels=channels,
            stacked_convs=4,
            anchor_generator=dict(
                type="AnchorGenerator",
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=_coder((1.0,) * 4),
            loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        train_cfg=dict(
            assigner=_assigner(0.5, 0.4, 0.0),
            sampler=dict(type="PseudoSampler"),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    )


def _assigner(positive: float, negative: float, least: float) -> Settings:
    """Anchors or proposals are objects from IoU `positive` on, background below `negative`."""
    return dict(type="MaxIoUAssigner", pos_iou_thr=positive, neg_iou_thr=negative, min_pos_iou=least, ignore_iof_thr=-1)


def _coder(stds: tuple[float, ...]) -> Settings:
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=list(stds))


def _extractor(size: int) -> Settings:
    layer = dict(type="RoIAlign", output_size=size, sampling_ratio=0)
    return dict(type="SingleRoIExtractor", roi_layer=layer, featmap_strides=[4, 8, 16, 32])


def _box_head(width: int, stds: tuple[float, ...] = _STAGES[0][1]) -> Settings:
    return dict(
        type="Shared2FCBBoxHead",
        fc_out_channels=width,
        roi_feat_size=7,
        bbox_coder=_coder(stds),
        reg_class_agnostic=False,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    )


def _box_head_2fc(width: int, stds: tuple[float, ...]) -> Settings:
    loss = dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0)
    return dict(_box_head(width, stds), reg_class_agnostic=True, loss_bbox=loss)


def _box_head_4conv(channels: int, width: int, stds: tuple[float, ...]) -> Settings:
    return dict(
        _box_head(width, stds),
        type="ConvFCBBoxHead",
        num_shared_convs=4,
        num_shared_fcs=1,
        conv_out_channels=channels,
        reg_decoded_bbox=True,
        norm_cfg=dict(type="BN"),  # several GPUs synchronise it, as published
        loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
    )
