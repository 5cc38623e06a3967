"""COCO boxes and masks, short sides of 480 to 800, every other picture from a random crop, as DETR and Swin have it."""

_base_ = ["coco_instance.py"]

_scales = [(side, 1333) for side in range(480, 801, 32)]
_resize = dict(type="RandomChoiceResize", scales=_scales)
_crop = [
    dict(type="RandomChoiceResize", scales=[(400, 1333), (500, 1333), (600, 1333)]),
    dict(type="RandomRangeCrop", low=384, high=600),
]
_train = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations", with_mask=True),
    dict(type="Flip", p=0.5),
    dict(type="RandomChoice", transforms=[[_resize], [*_crop, _resize]]),
    dict(type="SanitizeBoxes", min_size=1),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=_train))
