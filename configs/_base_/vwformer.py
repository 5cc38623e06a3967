"""VWFormer (arXiv 2404.16573): AdamW with layer-wise decay of the learning rate, no auxiliary head."""

_base_ = ["segmenter.py"]

model = dict(
    type="Segmenter",
    arch="vwformer",
    backbone=dict(name="swin_base"),
    backbone_pretrained=True,
    data_preprocessor=dict(type="SegPreprocessor"),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
backbone_recipes = {"swin_*": dict(optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.85)))}
