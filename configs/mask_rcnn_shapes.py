"""A small Mask R-CNN on the synthetic shapes: the whole path from data to mask AP on a laptop.

python tools/train.py configs/mask_rcnn_shapes.py
python tools/test.py configs/mask_rcnn_shapes.py work_dirs/mask_rcnn_shapes/best.pth

Expected: mask AP at least 0.40 on the 200 validation pictures, measured at the end of the command.
Cost: less than 10 minutes on 2 CPU cores.
"""

_base_ = ["_base_/runtime.py", "_base_/coco_instance.py"]

_size = (160, 160)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations", with_mask=True),
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
_shapes = "data/shapes/"
_val_json = _shapes + "annotations/instances_val.json"

model = dict(
    type="Detector",
    arch="mask_rcnn",
    backbone=dict(name="resnet_debug", width=16),
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    data_preprocessor=dict(type="DetPreprocessor"),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(ann_file=_shapes + "annotations/instances_train.json", img_dir=_shapes + "train", pipeline=_train),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(ann_file=_val_json, img_dir=_shapes + "val", pipeline=_val),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=_val_json)
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="AmpWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=5.0),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(decay_vectors=False),
)
env_cfg = dict(num_threads=1)  # another process loads
auto_scale_lr = dict(enable=True, base_batch_size=8)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=70),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.02, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type="EpochTrainLoop", max_epochs=7, val_interval=3)
default_hooks = dict(
    ema=dict(type="WarmupEMAHook", decay=0.999, warmups=300),
    checkpoint=dict(best="coco/segm_mAP"),
    curves=dict(metric="coco/segm_mAP"),
)
