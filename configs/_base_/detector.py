"""What the recipes of detectors share: 12 epochs, AdamW, two steps of the learning rate, and what backbones want.

`backbone_recipes` holds what differs between backbones, in every method: by patterns of their names, applied in order.
ResNet: mmdetection's SGD; Swin, PVT: their papers' Mask R-CNN and RetinaNet runs.
"""

_base_ = ["runtime.py"]

model = dict(
    type="Detector",
    backbone=dict(name="swin_tiny"),
    backbone_pretrained=True,
    data_preprocessor=dict(type="DetPreprocessor"),
)
optim_wrapper = dict(
    type="AmpWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(rules=[dict(pattern="norm", weight_decay=0.0, optional=True)]),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", milestones=[8, 11], gamma=0.1, by_epoch=True),
]
train_cfg = dict(type="EpochTrainLoop", max_epochs=12)
backbone_recipes = {
    "resnet_[0-9]*": dict(
        model=dict(backbone=dict(frozen_stages=1, freeze_norm=True)),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4), paramwise_cfg=dict(rules=[])),
    ),
    "*swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "*swin_base*": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "*pvt_*": dict(optim_wrapper=dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(rules=[]))),
    "convnext_*": dict(
        model=dict(backbone=dict(drop_path_rate=0.4)),
        optim_wrapper=dict(dtype="fp16", paramwise_cfg=dict(rules=[], layer_decay=0.95, decay_vectors=False)),
    ),
}
