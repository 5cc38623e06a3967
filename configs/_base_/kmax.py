"""kMaX-DeepLab (arXiv 2207.04044): AdamW with a poly schedule and a long warm-up, fp16, no clipping.

Poly counts from the first iteration, and the warm-up multiplies it. (In the official code it does not while the warm-up lasts:
up to 3 % more on COCO, 8 % on Cityscapes.) `backbone_recipes` holds what differs between backbones.
"""

_base_ = ["runtime.py"]

model = dict(
    type="MaskSegmenter",
    arch="kmax",
    backbone=dict(name="resnet_50"),
    backbone_pretrained=True,
    criterion=dict(num_points=(4096, 4096)),
    outputs=("panoptic",),
    data_preprocessor=dict(type="MaskPreprocessor"),
)
_rules = [
    dict(pattern=r"^backbone\.", lr_mult=0.1),
    dict(pattern=r"(_positions|^head\.centres)\.weight$", weight_decay=0.0),
]
optim_wrapper = dict(
    type="AmpWrapper",
    dtype="fp16",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(decay_vectors=False, rules=_rules),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=5000),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(type="IterTrainLoop", max_iters=150_000)  # validated ten times
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=None))
backbone_recipes = {
    "convnext_tiny": dict(model=dict(backbone=dict(drop_path_rate=0.3), backbone_pretrained="convnext_tiny_22k_1k_384")),
    "convnext_small": dict(model=dict(backbone=dict(drop_path_rate=0.4), backbone_pretrained="convnext_small_22k_1k_384")),
    "convnext_base": dict(model=dict(backbone=dict(drop_path_rate=0.5), backbone_pretrained="convnext_base_22k_1k_384")),
    "convnext_large": dict(model=dict(backbone=dict(drop_path_rate=0.6), backbone_pretrained="convnext_large_22k_1k_384")),
}
