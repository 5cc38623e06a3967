"""The synthetic shapes with panoptic annotations, in crops of 160 x 160, and a short schedule for small mask classifiers.

One thread computes (networks as small as these gain nothing from a second one), another process loads.
"""

_base_ = ["runtime.py", "loaders.py"]

data = "shapes"

_train = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomResize", scale=(192, 192), ratio_range=(0.8, 1.25)),
    dict(type="RandomCrop", size=(160, 160)),
    dict(type="Flip", p=0.5),
    dict(type="PackPanoptic"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(192, 192), keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="LoadPanoptic"),
    dict(type="PackPanoptic", segments=False, semantic=True),
]

train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(type="PanopticDataset", pipeline=_train))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(type="PanopticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = dict(type="PanopticMetric")
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="AmpWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(decay_vectors=False),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=100),
]
train_cfg = dict(type="IterTrainLoop", max_iters=1600, val_interval=400)
env_cfg = dict(num_threads=1)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=None), ema=dict(type="WarmupEMAHook", decay=0.995, warmups=100))
