"""COCO boxes and masks, short side 800 and long side 1333 at most, mirrored. ``--data`` puts other data in place of COCO's."""

_base_ = ["loaders.py"]

_size = (800, 1333)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations", with_mask=True),
    dict(type="Resize", size=_size, keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="Flip", p=0.5),
    dict(type="SanitizeBoxes", min_size=1),
    dict(type="PackDetInputs"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", size=_size, keep_ratio=True, interpolation="cv2_bilinear"),
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
    ),
)
val_dataloader = dict(
    dataset=dict(type="CocoDetection", ann_file=_val_json, img_dir=_coco + "val2017", test_mode=True, pipeline=_val),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoBoxMetric", ann_file=_val_json, iou_types=("bbox", "segm"))
test_evaluator = val_evaluator
