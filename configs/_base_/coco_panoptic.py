"""COCO panoptic with large-scale jitter: scales of 0.1 to 2 of 1024, cut or padded to 1024 x 1024.

``--data`` puts other data in place; metrics that it has no files for are left out.
"""

_base_ = ["loaders.py"]

data = "coco"

_crop = (1024, 1024)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="Flip", p=0.5),
    dict(type="RandomResize", scale=_crop, ratio_range=(0.1, 2.0), interpolation="bilinear"),
    dict(type="RandomCrop", size=_crop),
    dict(type="FixedSizePad", size=_crop, fill=128),
    dict(type="PackPanoptic"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(800, 1333), keep_ratio=True, interpolation="bilinear"),
    dict(type="LoadPanoptic"),
    dict(type="PackPanoptic", segments=False, semantic=True),
]

train_dataloader = dict(dataset=dict(type="PanopticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="PanopticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="PanopticMetric"),
    dict(type="CocoBoxMetric", iou_types=("segm",)),
    dict(type="SemanticMetric"),
]
test_evaluator = val_evaluator
