"""RT-DETR's recipe (arXiv 2304.08069): 72 epochs, batch 16, constant learning rate, EMA, multi-scale.

`no_decay` of the published configs goes by parameter names of the official code, where the norms of the encoder's input
projections and of the query selection are called "1", not "norm": their weights are decayed, hence the first rule.
"""

_base_ = ["runtime.py", "coco_detection.py"]

model = dict(
    type="RTDETR",
    arch="r50vd",
    backbone_pretrained=True,
    data_preprocessor=dict(
        type="RTDETRPreprocessor", multi_scale=[480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800]
    ),
)
optim_wrapper = dict(
    type="AmpWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
    constructor="ParamRuleConstructor",
    paramwise_cfg=dict(
        rules=[
            dict(pattern=r"^backbone\.", lr=1e-5),
            dict(pattern=r"^(neck\.input_proj\.\d+|head\.enc_output)\.norm\.weight$"),
            dict(pattern=r"^(neck|head)\..*(bias|norm.*weight)", weight_decay=0.0),
        ]
    ),
)
param_scheduler = None
train_cfg = dict(type="EpochTrainLoop", max_epochs=72)
default_hooks = dict(ema=dict(type="WarmupEMAHook", decay=0.9999, warmups=2000))
