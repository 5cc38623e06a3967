"""As `detector.py`, for 36 epochs; in runs of this length PVT v2 takes the settings of Swin."""

_base_ = ["detector.py"]

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", milestones=[27, 33], gamma=0.1, by_epoch=True),
]
train_cfg = dict(max_epochs=36)
_rules = [dict(pattern="norm", weight_decay=0.0, optional=True)]
backbone_recipes = {
    "pvt_v2_*": dict(optim_wrapper=dict(optimizer=dict(lr=1e-4, weight_decay=0.05), paramwise_cfg=dict(rules=_rules)))
}
