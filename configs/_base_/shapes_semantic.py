"""The synthetic shapes in crops of 128 x 128, and a short schedule for small networks from random weights.

One thread computes (networks as small as these gain nothing from a second one), another process loads.
"""

_base_ = ["runtime.py", "loaders.py"]

data = "shapes"

_train = [
    dict(type="LoadImage"),
    dict(type="LoadSemanticMask"),
    dict(type="RandomResize", scale=(192, 192), ratio_range=(0.8, 1.25)),
    dict(type="RandomCrop", size=(128, 128)),
    dict(type="Flip", p=0.5),
    dict(type="PackSegInputs"),
]
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(192, 192), keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="LoadSemanticMask"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(type="SemanticDataset", pipeline=_train))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(type="SemanticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = dict(type="SemanticMetric")
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="AmpWrapper",
    optimizer=dict(type="AdamW", lr=3e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(decay_vectors=False),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=50),
]
train_cfg = dict(type="IterTrainLoop", max_iters=1200, val_interval=300)
env_cfg = dict(num_threads=1)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(
    checkpoint=dict(interval=None),
    worst=dict(type="WorstImagesHook"),
    ema=dict(type="WarmupEMAHook", decay=0.995, warmups=100),
)
