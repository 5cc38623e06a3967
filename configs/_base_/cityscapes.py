"""Cityscapes (19 classes) in crops of 512 x 1024 with mmsegmentation's augmentation. ``--data`` puts other data in place."""

_base_ = ["loaders.py"]

data = "cityscapes"

_train = [
    dict(type="LoadImage"),
    dict(type="LoadSemanticMask"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0)),
    dict(type="RandomCrop", size=(512, 1024), cat_max_ratio=0.75),
    dict(type="Flip", p=0.5),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="PackSegInputs"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(2048, 1024), keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="LoadSemanticMask"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(dataset=dict(type="SemanticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="SemanticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
