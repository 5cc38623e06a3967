"""RT-DETRv2's recipe (arXiv 2407.17140): as RT-DETR, with fp16, warm-up, and weak augmentation in the last epochs."""

_base_ = ["rtdetr.py"]

model = dict(arch="v2_r50vd")
optim_wrapper = dict(
    dtype="fp16",
    paramwise_cfg=dict(
        rules=[
            dict(pattern=r"^backbone\.(?!.*norm)", lr=1e-5),
            dict(pattern=r"^(neck|head)\..*norm", weight_decay=0.0),
        ]
    ),
)
param_scheduler = [dict(type="LinearLR", start_factor=1 / 2000, by_epoch=False, begin=0, end=2000)]
default_hooks = dict(
    stop_augmentation=dict(type="StopAugmentation", epoch=71, transforms=["PhotometricDistort", "ZoomOut", "IoUCrop"])
)
