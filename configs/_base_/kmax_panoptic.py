"""Panoptic data as kMaX-DeepLab takes them from COCO: scales of 0.2 to 2 of 1281, cut to 1281 x 1281, and segments of a second
picture laid over.

The second picture has half the scales of the first. Pictures are padded by the model, behind the normalisation. ``--data`` puts
other data in place.
"""

_base_ = ["loaders.py"]

_crop = (1281, 1281)
_second = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomResize", scale=_crop, ratio_range=(0.1, 1.0), interpolation="bilinear"),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="RandomCrop", size=_crop),
    dict(type="Flip", p=0.5),
]
_train = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomResize", scale=_crop, ratio_range=(0.2, 2.0), interpolation="bilinear"),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="RandomCrop", size=_crop),
    dict(type="Flip", p=0.5),
    dict(type="PanopticCopyPaste", transforms=_second),
    dict(type="RequireSegments", min_pixels=4096),
    dict(type="PackPanoptic"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=_crop, keep_ratio=True, interpolation="bilinear"),
    dict(type="LoadPanoptic"),
    dict(type="PackPanoptic", segments=False),
]

train_dataloader = dict(dataset=dict(type="PanopticDataset", pipeline=_train))
val_dataloader = dict(dataset=dict(type="PanopticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = dict(type="PanopticMetric")
test_evaluator = val_evaluator
