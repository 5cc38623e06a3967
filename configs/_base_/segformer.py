"""SegFormer (arXiv 2105.15203): the head learns ten times as fast as the backbone."""

_base_ = ["segmenter.py"]

model = dict(
    type="Segmenter",
    arch="segformer",
    backbone=dict(name="mit_b0"),
    backbone_pretrained=True,
    data_preprocessor=dict(type="SegPreprocessor"),
)
_head = dict(pattern=r"^decode_head\.", lr_mult=10.0)
_layerwise = dict(optim_wrapper=dict(paramwise_cfg=dict(rules=[_head])))
_rules = [_head, dict(pattern="norm", weight_decay=0.0, optional=True)]
optim_wrapper = dict(paramwise_cfg=dict(rules=_rules))
backbone_recipes = {
    "mit_*": dict(optim_wrapper=dict(paramwise_cfg=dict(rules=_rules))),
    "convnext_*": _layerwise,
    "hornet_*": _layerwise,
    "unireplknet_*": _layerwise,
    "vit_comer_*": _layerwise,
}
