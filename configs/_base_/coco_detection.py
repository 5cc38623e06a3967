"""COCO detection at 640 x 640 with RT-DETR's augmentation. ``--data`` puts other data in place of COCO's files."""

_base_ = ["loaders.py"]

_size = (640, 640)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations"),
    dict(type="PhotometricDistort", p=0.5),
    dict(type="ZoomOut", p=0.5, fill=0),
    dict(type="IoUCrop", p=0.8),
    dict(type="SanitizeBoxes", min_size=1),
    dict(type="Flip", p=0.5),
    dict(type="Resize", size=_size),
    dict(type="SanitizeBoxes", min_size=1),
    dict(type="PackDetInputs"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", size=_size),
    dict(type="PackDetInputs"),
]
_coco = "data/coco/"
_val_json = _coco + "annotations/instances_val2017.json"

train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type="CocoDetection",
        ann_file=_coco + "annotations/instances_train2017.json",
        img_dir=_coco + "train2017",
        pipeline=_train,
    ),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(type="CocoDetection", ann_file=_val_json, img_dir=_coco + "val2017", test_mode=True, pipeline=_val),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoBoxMetric", ann_file=_val_json)
test_evaluator = val_evaluator
