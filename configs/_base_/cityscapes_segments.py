"""Cityscapes for mask classifiers, one segment for each class, in crops of 512 x 1024 from short sides of 512 to 2048."""

_base_ = ["loaders.py"]

data = "cityscapes"

_sides = [int(0.1 * step * 1024) for step in range(5, 21)]
_train = [
    dict(type="LoadImage"),
    dict(type="LoadSemanticMask"),
    dict(type="RandomChoiceResize", scales=[(side, 4096) for side in _sides], interpolation="bilinear"),
    dict(type="RandomCrop", size=(512, 1024)),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="Flip", p=0.5),
    dict(type="PackSemanticSegments"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(1024, 2048), keep_ratio=True, interpolation="bilinear"),
    dict(type="LoadSemanticMask"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(dataset=dict(type="SemanticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="SemanticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = dict(type="SemanticMetric")
test_evaluator = val_evaluator
