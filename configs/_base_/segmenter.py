"""What the recipes of semantic segmentation share: iterations, a poly schedule after a warm-up, and what backbones want.

`backbone_recipes` holds what differs between backbones, in every method: by patterns of their names, applied in order.
Stochastic depth, learning rates and decay are those of the papers' ADE20K runs (Swin, ConvNeXt: UPerNet; MiT: SegFormer).
"""

_base_ = ["runtime.py"]

optim_wrapper = dict(
    type="AmpWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(rules=[dict(pattern="norm", weight_decay=0.0, optional=True)]),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500),
]
train_cfg = dict(type="IterTrainLoop", max_iters=160_000)  # validated ten times
val_evaluator = dict(type="SemanticMetric")
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(interval=None), worst=dict(type="WorstImagesHook"))

_head_rules = [
    dict(pattern=r"^(decode|auxiliary)_head\.", lr_mult=10.0),
    dict(pattern="norm", weight_decay=0.0, optional=True),
]
backbone_recipes = {
    "swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "slab_swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "mit_*": dict(
        model=dict(backbone=dict(drop_path_rate=0.1)),
        optim_wrapper=dict(optimizer=dict(lr=6e-5, weight_decay=0.01), paramwise_cfg=dict(rules=_head_rules)),
    ),
    "convnext_*": dict(
        model=dict(backbone=dict(drop_path_rate=0.4)),
        optim_wrapper=dict(
            dtype="fp16",
            optimizer=dict(lr=1e-4, weight_decay=0.05),
            paramwise_cfg=dict(rules=[], layer_decay=0.9, decay_vectors=False),
        ),
    ),
}
