"""ADE20K panoptic in crops of 640 x 640 from pictures with short sides of 320 to 1280.

``--data`` puts other data in place; metrics that it has no files for are left out.
"""

_base_ = ["loaders.py"]

data = "ade20k"

_crop = (640, 640)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomChoiceResize", scales=[(side, 2560) for side in range(320, 1281, 64)], interpolation="bilinear"),
    dict(type="RandomCrop", size=_crop),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="Flip", p=0.5),
    dict(type="FixedSizePad", size=_crop, fill=128),
    dict(type="PackPanoptic"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(640, 2560), keep_ratio=True, interpolation="bilinear"),
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
