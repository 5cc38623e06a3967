"""mmdet models on top of the stand-ins: loss, backward and prediction on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from mmvit.ops import prepare_openmmlab

BACKBONE = dict(type="ResNet", depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3), init_cfg=None)
NECK = dict(type="FPN", in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5)
CODER = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4)
ANCHORS = dict(type="AnchorGenerator", scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])
PREPROCESSOR = dict(type="DetDataPreprocessor", mean=[120.0] * 3, std=[60.0] * 3, pad_size_divisor=32)


def assigner(positive: float, negative: float) -> dict:
    return dict(type="MaxIoUAssigner", pos_iou_thr=positive, neg_iou_thr=negative, min_pos_iou=negative, ignore_iof_thr=-1)


def extractor(size: int) -> dict:
    return dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=size, sampling_ratio=0),
        out_channels=16,
        featmap_strides=[4, 8, 16, 32],
    )


def mask_rcnn() -> dict:
    sampler = dict(type="RandomSampler", num=64, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)
    proposals = dict(nms_pre=200, max_per_img=100, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0)
    return dict(
        type="MaskRCNN",
        data_preprocessor=dict(PREPROCESSOR, pad_mask=True),
        backbone=BACKBONE,
        neck=dict(NECK, conv_cfg=dict(type="DCNv2")),
        rpn_head=dict(type="RPNHead", in_channels=16, feat_channels=16, anchor_generator=ANCHORS, bbox_coder=CODER),
        roi_head=dict(
            type="StandardRoIHead",
            bbox_roi_extractor=extractor(7),
            mask_roi_extractor=extractor(14),
            bbox_head=dict(type="Shared2FCBBoxHead", in_channels=16, fc_out_channels=32, num_classes=3, bbox_coder=CODER),
            mask_head=dict(type="FCNMaskHead", num_convs=1, in_channels=16, conv_out_channels=16, num_classes=3),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=assigner(0.7, 0.3),
                sampler=dict(sampler, add_gt_as_proposals=False),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=proposals,
            rcnn=dict(assigner=assigner(0.5, 0.5), sampler=sampler, mask_size=28, pos_weight=-1, debug=False),
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(score_thr=0.0, nms=dict(type="soft_nms", iou_threshold=0.5), max_per_img=10, mask_thr_binary=0.5),
        ),
    )


def retina_net() -> dict:
    return dict(
        type="RetinaNet",
        data_preprocessor=PREPROCESSOR,
        backbone=BACKBONE,
        neck=NECK,
        bbox_head=dict(
            type="RetinaHead",
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            num_classes=3,
            anchor_generator=ANCHORS,
            bbox_coder=CODER,
        ),
        train_cfg=dict(
            assigner=assigner(0.5, 0.4), sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1, debug=False
        ),
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10),
    )


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """mmdet is imported when a test runs: it takes seconds, and every worker collects this file."""
    prepare_openmmlab()
    import mmdet.models  # noqa: F401  (fills the registry)
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


def batch() -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    samples = []
    for boxes in ([[4.0, 6, 40, 50], [20, 20, 60, 60]], []):  # the second picture is empty
        instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.arange(len(boxes)))
        masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        instances.masks = BitmapMasks(masks.numpy(), 64, 64)
        sample = DetDataSample(
            gt_instances=instances,
            metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0)),
        )
        samples.append(sample)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize("config", [mask_rcnn, retina_net])
def test_detector_trains_and_predicts(config: Callable[[], dict]) -> None:
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config()))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    totals = []
    for _ in range(3):
        torch.manual_seed(1)  # the same boxes are sampled
        data = model.data_preprocessor(batch(), training=True)
        losses = model.loss(data["inputs"], data["data_samples"])
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < totals[0]
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []
    model.eval()
    with torch.no_grad():
        results = model.test_step(batch())
    for result in results:
        found = result.pred_instances
        assert 0 < len(found) <= 10 and found.bboxes.isfinite().all() and found.bboxes.max() <= 64
        if config is mask_rcnn:
            assert found.masks.shape == (len(found), 64, 64)
