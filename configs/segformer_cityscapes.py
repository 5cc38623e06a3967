"""SegFormer on Cityscapes, with MiT-B0 or any backbone.

python tools/prepare_dataset.py cityscapes --from DIR
python tools/train.py configs/segformer_cityscapes.py --batch-size 8  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/segformer_cityscapes.py --launcher pytorch  # batch 8, as published
python tools/train.py configs/segformer_cityscapes.py --backbone mit_b2
python tools/test.py configs/segformer_cityscapes.py segformer_mit_b0_cityscapes

Expected: mIoU 76.54 with mit_b0 by sliding windows of 1024 x 1024; mit_b1 78.56, mit_b2 81.08, mit_b3 81.94, mit_b4 81.89,
mit_b5 82.25; 160k iterations, table of open-mmlab/mmsegmentation 1.2.2.
Cost: 8 images of 1024 x 1024 a step on 1 to 4 GPUs; 4 M parameters with mit_b0.
"""

_base_ = ["_base_/cityscapes.py", "_base_/segformer.py"]

_crop = (1024, 1024)
_train = [
    dict(type="LoadImage"),
    dict(type="LoadSemanticMask"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0)),
    dict(type="RandomCrop", size=_crop, cat_max_ratio=0.75),
    dict(type="Flip", p=0.5),
    dict(type="SegPhotometricDistort", p=0.5),
    dict(type="PackSegInputs"),
]

model = dict(
    data_preprocessor=dict(size=_crop),
    test_cfg=dict(mode="slide", crop_size=_crop, stride=(768, 768)),
)
train_dataloader = dict(dataset=dict(pipeline=_train))
auto_scale_lr = dict(base_batch_size=8)
