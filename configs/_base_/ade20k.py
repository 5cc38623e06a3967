"""ADE20K (150 classes) in crops of 512 x 512 with mmsegmentation's augmentation. ``--data`` puts other data in place."""

_base_ = ["loaders.py"]

data = "ade20k"

_train = [
    dict(type="LoadImage"),
    dict(type="LoadSemanticMask"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0)),
    dict(type="RandomCrop", size=(512, 512), cat_max_ratio=0.75),
    dict(type="Flip", p=0.5),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="PackSegInputs"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(2048, 512), keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="LoadSemanticMask"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(batch_size=4, dataset=dict(type="SemanticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="SemanticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
