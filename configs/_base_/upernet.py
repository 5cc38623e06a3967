"""UPerNet (arXiv 1807.10221) as Swin (2103.14030) and ConvNeXt (2201.03545) are trained with it: AdamW, auxiliary FCN head."""

_base_ = ["segmenter.py"]

model = dict(
    type="Segmenter",
    arch="upernet",
    backbone=dict(name="swin_tiny"),
    backbone_pretrained=True,
    data_preprocessor=dict(type="SegPreprocessor"),
)
backbone_recipes = {
    "convnext_small": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "convnext_xlarge": dict(optim_wrapper=dict(optimizer=dict(lr=8e-5))),
    # The published recipe counts 6 of the 12 layers, so that the layers learn faster than the head.
    "hornet_tiny_*": dict(
        optim_wrapper=dict(
            paramwise_cfg=dict(rules=[dict(pattern=r"^backbone\.(downsample_layers|stages)\.", lr_mult=0.9**-6)])
        )
    ),
    "vit_comer_t": dict(optim_wrapper=dict(optimizer=dict(lr=1.2e-4))),
}
