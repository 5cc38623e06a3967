"""What the recipes of semantic segmentation share: iterations, a poly schedule after a warm-up, and what backbones want.

`backbone_recipes` holds what differs between backbones, in every method: by patterns of their names, applied in order.
Stochastic depth, learning rates and decay are those of the papers' ADE20K runs (MiT: SegFormer, others: UPerNet). Where a rate
of stochastic depth is missing, the variant's own is the published one; UniRepLKNet-XL has no published recipe and takes that of
L, EfficientFormer's settings are those of its Semantic FPN. Of families that are missing, too (iFormer, PoolFormer, ...), no
recipe is published, or it is the default one (CSWin, CrossFormer, Agent-Swin, NAT, SMT).
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
_layerwise = dict(rules=[], decay_vectors=False)  # beside `layer_decay`
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
            paramwise_cfg=dict(_layerwise, layer_decay=0.9),
        ),
    ),
    "hornet_*": dict(
        optim_wrapper=dict(optimizer=dict(lr=1e-4, weight_decay=0.05), paramwise_cfg=dict(_layerwise, layer_decay=0.9))
    ),
    "hornet_large_*": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.8))),
    "hornet_*_gf": dict(model=dict(backbone=dict(grids=(None, None, (24, 13), (12, 7))))),
    "unireplknet_*": dict(
        optim_wrapper=dict(optimizer=dict(lr=1e-4, weight_decay=0.05), paramwise_cfg=dict(_layerwise, layer_decay=0.9))
    ),
    "unireplknet_t": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=1.0))),
    "unireplknet_*l": dict(
        model=dict(backbone=dict(drop_path_rate=0.4)), optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.85))
    ),
    "vit_comer_*": dict(optim_wrapper=dict(paramwise_cfg=dict(_layerwise, layer_decay=0.95))),
    "nextvit_*": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "efficientformer*": dict(model=dict(backbone=dict(bias_grid=16))),
    "efficientformerv2_*": dict(model=dict(backbone=dict(norm_eval=True))),
}
