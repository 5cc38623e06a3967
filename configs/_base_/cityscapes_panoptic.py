"""Cityscapes panoptic in crops of 512 x 1024 from pictures with short sides of 512 to 2048.

``--data`` puts other data in place; metrics that it has no files for are left out.
"""

_base_ = ["loaders.py"]

data = "cityscapes"

_sides = [int(0.1 * step * 1024) for step in range(5, 21)]
_train = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomChoiceResize", scales=[(side, 4096) for side in _sides], interpolation="bilinear"),
    dict(type="RandomCrop", size=(512, 1024)),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="Flip", p=0.5),
    dict(type="PackPanoptic"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(1024, 2048), keep_ratio=True, interpolation="bilinear"),
    dict(type="LoadPanoptic"),
    dict(type="PackPanoptic", segments=False, semantic=True),
]

train_dataloader = dict(dataset=dict(type="PanopticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="PanopticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="PanopticMetric"),
    dict(type="CityscapesInstanceMetric"),
    dict(type="SemanticMetric"),
]
test_evaluator = val_evaluator
