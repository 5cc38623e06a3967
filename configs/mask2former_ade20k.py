"""Mask2Former on ADE20K for semantic segmentation, with ResNet-50 or any backbone.

python tools/prepare_dataset.py ade20k
torchrun --nproc-per-node 8 tools/train.py configs/mask2former_ade20k.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask2former_ade20k.py --backbone swin_tiny --batch-size 16  # one GPU
python tools/test.py configs/mask2former_ade20k.py mask2former_resnet_50_ade20k_sem

Expected: mIoU with resnet_50 47.2, resnet_101 47.8, swin_tiny 47.7, swin_small 51.3, and in crops of 640 swin_base_window12
52.4 (53.9 from ImageNet-22K: ``--cfg-options model.backbone_pretrained=swin_base_window12_22k``), swin_large_window12 56.1;
160k iterations, facebookresearch/Mask2Former, MODEL_ZOO. (Its figures over several scales, 1.1 to 2.3 higher, are not measured
here.) Other backbones: no published figure of this recipe.
Cost: 16 images of 512 x 512 (640 x 640) a step on 8 V100 (swin_large: 16); 44 M parameters and 70 GFLOPs with resnet_50 (PEM's
table).
"""

_base_ = ["_base_/ade20k_segments.py", "_base_/mask2former.py"]

model = dict(outputs=("semantic",))
default_hooks = dict(worst=dict(type="WorstImagesHook"))
backbone_recipes = {
    "resnet_50": dict(model=dict(backbone=dict(freeze_norm=True))),
    "swin_base*": dict(size=640),
    "swin_large*": dict(size=640),
}
