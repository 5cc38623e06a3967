"""ADE20K for mask classifiers, one segment for each class, in crops of 512 x 512 from short sides of 256 to 1024.

Resizing is that of detectron2 (Pillow's), as for all recipes of mask classifiers. ``--data`` puts other data in place.
"""

_base_ = ["loaders.py"]

data = "ade20k"

_crop = (512, 512)
_sides = [int(0.1 * step * 512) for step in range(5, 21)]
_train = [
    dict(type="LoadImage"),
    dict(type="LoadSemanticMask"),
    dict(type="RandomChoiceResize", scales=[(side, 2048) for side in _sides], interpolation="bilinear"),
    dict(type="RandomCrop", size=_crop),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="Flip", p=0.5),
    dict(type="FixedSizePad", size=_crop, fill=128),
    dict(type="PackSemanticSegments"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(512, 2048), keep_ratio=True, interpolation="bilinear"),
    dict(type="LoadSemanticMask"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(dataset=dict(type="SemanticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="SemanticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = dict(type="SemanticMetric")
test_evaluator = val_evaluator
