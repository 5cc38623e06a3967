"""kMaX-DeepLab on Cityscapes panoptic, with ResNet-50, ConvNeXt or any backbone.

python tools/prepare_dataset.py cityscapes --panoptic --from DIR
torchrun --nproc-per-node 8 tools/train.py configs/kmax_cityscapes_panoptic.py --launcher pytorch --batch-size 4  # 32
python tools/train.py configs/kmax_cityscapes_panoptic.py --backbone convnext_large
python tools/test.py configs/kmax_cityscapes_panoptic.py kmax_resnet_50_cityscapes_pan

Expected: PQ (things / stuff) with resnet_50 63.5 (57.8 / 67.7), convnext_large 68.4 (62.6 / 72.6) from ImageNet-22K; 60k
iterations at a batch of 32, table of bytedance/kmax-deeplab. Other backbones have no map behind their stem, which the published
networks take as a fifth one; they take four. No figure of them is published.
Cost: 32 images of 1025 x 2049 a step; 56 M parameters with resnet_50, 232 M with convnext_large.
"""

_base_ = ["_base_/kmax_panoptic.py", "_base_/kmax.py"]

data = "cityscapes"

_crop = (1025, 2049)
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
_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=_crop, keep_ratio=True, interpolation="bilinear", oriented=True),
    dict(type="LoadPanoptic"),
    dict(type="PackPanoptic", segments=False),
]

model = dict(
    head=dict(num_queries=256),
    auxiliary_head="coarse",
    criterion=dict(num_points=(4096, None), temperatures=(0.6, 1.0)),
    test_cfg=dict(thing_threshold=0.5, stuff_threshold=0.3, overlap_threshold=0.9, mask_power=0.0),
    data_preprocessor=dict(size=_crop),
)
train_dataloader = dict(dataset=dict(pipeline=_train))
val_dataloader = dict(dataset=dict(pipeline=_val))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_iters=60_000)
auto_scale_lr = dict(base_batch_size=32)
_kinds = ("axial", "axial", "bottleneck", "bottleneck", "bottleneck")
_five_maps = dict(stem_map=True, neck=dict(widths=(512, 256, 128, 64, 32), depths=(1, 5, 1, 1, 1), kinds=_kinds))
backbone_recipes = {
    "resnet_*": dict(model=_five_maps),
    "convnext_*": dict(model=_five_maps),
    "resnet_debug": dict(model=dict(neck=dict(widths=(16, 16, 8, 8, 8), depths=(1, 1, 1, 1, 1)))),
    "convnext_debug": dict(model=dict(neck=dict(widths=(16, 16, 8, 8, 8), depths=(1, 1, 1, 1, 1)))),
}
