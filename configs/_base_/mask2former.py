"""Mask2Former (arXiv 2112.01527): AdamW without decay of norms and embeddings, gradients clipped as a whole, fp16.

`backbone_recipes` holds what differs between backbones: by patterns of their names, applied in order.
"""

_base_ = ["runtime.py"]

model = dict(
    type="MaskSegmenter",
    arch="mask2former",
    backbone=dict(name="resnet_50"),
    backbone_pretrained=True,
    criterion=dict(num_points=12544),
    data_preprocessor=dict(type="MaskPreprocessor"),
)
_rules = [
    dict(pattern=r"^backbone\.", lr_mult=0.1),
    dict(pattern=r"^head\.(query_feat|query_embed|level_embed)\.", weight_decay=0.0),
]
optim_wrapper = dict(
    type="AmpWrapper",
    dtype="fp16",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(decay_norms=False, rules=_rules),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False)]
train_cfg = dict(type="IterTrainLoop", max_iters=160_000)  # validated ten times
default_hooks = dict(checkpoint=dict(interval=None))
backbone_recipes = {"*swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.3)))}
