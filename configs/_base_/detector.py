"""What the recipes of detectors share: 12 epochs, AdamW, two steps of the learning rate, and what backbones want.

`backbone_recipes` holds what differs between backbones, in every method: by patterns of their names, applied in order.
ResNet: mmdetection's SGD; others: their papers' Mask R-CNN runs, or Cascade Mask R-CNN (HorNet, UniRepLKNet, the large NAT and
DiNAT), in which no other detector is published. A family's recipe serves all its sizes and all schedules; where a rate of
stochastic depth is missing, the variant's own is the published one. Of families that are missing (iFormer, CSWin, plain ViTs,
MetaFormer) no recipe is published. That of ViTDet is for 64 pictures a step, in larger and differently scaled pictures and over
100 epochs; SHViT is published with a neck of its own.
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
_pvt = dict(optim_wrapper=dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(rules=[])))
_layerwise = dict(rules=[], decay_vectors=False)  # beside `layer_decay`
_warmup_500 = {"0": dict(end=500)}  # of `param_scheduler`: of its first entry
backbone_recipes = {
    "resnet_[0-9]*": dict(
        model=dict(backbone=dict(frozen_stages=1, freeze_norm=True)),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4), paramwise_cfg=dict(rules=[])),
    ),
    "swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "slab_swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "swin_base*": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "agent_swin_*": dict(model=dict(backbone=dict(drop_path_rate=0.1))),
    "agent_swin_b": dict(model=dict(backbone=dict(drop_path_rate=0.4))),
    "*pvt_*": _pvt,
    "agent_pvt_[sl]": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "agent_pvt_m": dict(model=dict(backbone=dict(drop_path_rate=0.1))),
    "poolformer_*": _pvt,
    "efficientformer_*": _pvt,
    "efficientformerv2_*": dict(model=dict(backbone=dict(norm_eval=True)), optim_wrapper=dict(optimizer=dict(lr=2e-4))),
    "convnext_*": dict(
        model=dict(backbone=dict(drop_path_rate=0.4)),
        optim_wrapper=dict(dtype="fp16", paramwise_cfg=dict(_layerwise, layer_decay=0.95)),
    ),
    "hornet_*": dict(optim_wrapper=dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(_layerwise, layer_decay=0.7))),
    "hornet_small_*": dict(model=dict(backbone=dict(drop_path_rate=0.6))),
    "hornet_base_*": dict(
        model=dict(backbone=dict(drop_path_rate=0.7)), optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.8))
    ),
    "hornet_large_*": dict(model=dict(backbone=dict(drop_path_rate=0.7)), optim_wrapper=dict(optimizer=dict(lr=1e-4))),
    "hornet_large_gf": dict(model=dict(backbone=dict(grids=(None, None, (24, 13), (12, 7))))),
    "unireplknet_*": dict(optim_wrapper=dict(paramwise_cfg=dict(_layerwise, layer_decay=0.8))),
    "unireplknet_*l": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.7))),
    "unireplknet_t": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "unireplknet_s": dict(model=dict(backbone=dict(drop_path_rate=0.5))),
    "unireplknet_b": dict(model=dict(backbone=dict(drop_path_rate=0.6), backbone_pretrained="unireplknet_b_22k")),
    "unireplknet_l": dict(model=dict(backbone=dict(drop_path_rate=0.7), backbone_pretrained="unireplknet_l_22k")),
    "unireplknet_xl": dict(model=dict(backbone=dict(drop_path_rate=0.7), backbone_pretrained="unireplknet_xl_22k")),
    "*nat_*": dict(model=dict(backbone=dict(drop_path_rate=0.2))),  # NAT, DiNAT, DiNAT_s
    "*nat_*small": dict(model=dict(backbone=dict(drop_path_rate=0.35))),
    "nat_base": dict(model=dict(backbone=dict(drop_path_rate=0.5))),
    "dinat_*[a-z]": dict(model=dict(backbone=dict(dilations="coco"))),  # all with windows of 7 x 7
    "dinat_*base": dict(model=dict(backbone=dict(drop_path_rate=0.6)), optim_wrapper=dict(optimizer=dict(lr=7.5e-5))),
    "dinat_*large*": dict(model=dict(backbone=dict(drop_path_rate=0.6)), optim_wrapper=dict(optimizer=dict(lr=7.5e-5))),
    "dinat_large": dict(model=dict(backbone_pretrained="dinat_large_22k")),
    "dinat_s_large": dict(model=dict(backbone_pretrained="dinat_s_large_22k"), optim_wrapper=dict(optimizer=dict(lr=5e-5))),
    "nextvit_*": dict(model=dict(backbone=dict(frozen_stages=1, norm_eval=True))),
    "crossformer*": dict(
        optim_wrapper=dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(rules=[])), param_scheduler=_warmup_500
    ),
    "shvit_*": dict(model=dict(backbone=dict(norm_eval=True)), param_scheduler=_warmup_500),
    "smt_*": dict(optim_wrapper=dict(optimizer=dict(lr=2e-4))),
    "smt_b": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "vit_comer_*": dict(optim_wrapper=dict(paramwise_cfg=dict(_layerwise, layer_decay=0.7))),
    "vit_comer_b*": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.6))),
    "vitdet_*": dict(
        optim_wrapper=dict(optimizer=dict(weight_decay=0.1), paramwise_cfg=dict(layer_decay=0.7)),
        param_scheduler={"0": dict(end=250)},
        auto_scale_lr=dict(base_batch_size=64),
    ),
    "vitdet_l": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.8))),
    "vitdet_h": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.9))),
}
