"""COCO's objects as segments for mask classifiers, with large-scale jitter: scales of 0.1 to 2 of 1024, cut or padded to it."""

_base_ = ["loaders.py"]

_crop = (1024, 1024)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations", with_mask=True),
    dict(type="Flip", p=0.5),
    dict(type="RandomResize", scale=_crop, ratio_range=(0.1, 2.0), interpolation="bilinear"),
    dict(type="RandomCrop", size=_crop),
    dict(type="FixedSizePad", size=_crop, fill=128),
    dict(type="SanitizeBoxes", min_size=1),
    dict(type="PackInstanceSegments"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", size=(800, 1333), keep_ratio=True, interpolation="bilinear"),
    dict(type="PackDetInputs"),
]
_coco = "data/coco/"
_val_json = _coco + "annotations/instances_val2017.json"

train_dataloader = dict(
    dataset=dict(
        type="CocoDetection",
        ann_file=_coco + "annotations/instances_train2017.json",
        img_dir=_coco + "train2017",
        with_mask=True,
        filter_empty=True,
        pipeline=_train,
    )
)
val_dataloader = dict(
    dataset=dict(type="CocoDetection", ann_file=_val_json, img_dir=_coco + "val2017", test_mode=True, pipeline=_val)
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoBoxMetric", ann_file=_val_json, iou_types=("segm",))
test_evaluator = val_evaluator
