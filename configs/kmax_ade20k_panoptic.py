"""kMaX-DeepLab on ADE20K panoptic, with ResNet-50, ConvNeXt or any backbone.

python tools/prepare_dataset.py ade20k --panoptic
torchrun --nproc-per-node 8 tools/train.py configs/kmax_ade20k_panoptic.py --launcher pytorch --batch-size 8  # 64, as published
python tools/train.py configs/kmax_ade20k_panoptic.py --backbone convnext_large
python tools/test.py configs/kmax_ade20k_panoptic.py kmax_resnet_50_ade20k_pan

Expected: PQ (things / stuff) with resnet_50 42.2 (41.9 / 42.7), convnext_large 50.0 (49.5 / 50.8) from ImageNet-22K; 100k
iterations, table of bytedance/kmax-deeplab. Other backbones: no published figure of this recipe.
Cost: 64 images of 1281 x 1281 a step; 57 M parameters, 72 M in training, with resnet_50.
"""

_base_ = ["_base_/kmax_panoptic.py", "_base_/kmax.py"]

data = "ade20k"

_crop = (1281, 1281)
_second = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomResize", scale=_crop, ratio_range=(0.25, 1.0), interpolation="bilinear"),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="RandomCrop", size=_crop),
    dict(type="Flip", p=0.5),
]
_train = [
    dict(type="LoadImage"),
    dict(type="LoadPanoptic"),
    dict(type="RandomResize", scale=_crop, ratio_range=(0.5, 2.0), interpolation="bilinear"),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="RandomCrop", size=_crop),
    dict(type="Flip", p=0.5),
    dict(type="PanopticCopyPaste", transforms=_second),
    dict(type="RequireSegments", min_pixels=4096),
    dict(type="PackPanoptic"),
]

model = dict(
    head=dict(drop_path=0.0),
    test_cfg=dict(thing_threshold=0.4, stuff_threshold=0.4),
    data_preprocessor=dict(size=_crop),
)
train_dataloader = dict(dataset=dict(pipeline=_train))
train_cfg = dict(max_iters=100_000)
backbone_recipes = {"convnext_large": dict(model=dict(backbone=dict(drop_path_rate=0.7)))}
