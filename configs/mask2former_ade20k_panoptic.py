"""Mask2Former on ADE20K panoptic, with ResNet-50 or any backbone.

python tools/prepare_dataset.py ade20k --panoptic
torchrun --nproc-per-node 8 tools/train.py configs/mask2former_ade20k_panoptic.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask2former_ade20k_panoptic.py --backbone swin_tiny --batch-size 16  # one GPU
python tools/test.py configs/mask2former_ade20k_panoptic.py mask2former_resnet_50_ade20k_pan

Expected: PQ / mask AP / mIoU with resnet_50 39.7 / 26.5 / 46.1, swin_large_window12 48.1 / 34.2 / 54.5 (200 queries); 160k
iterations, facebookresearch/Mask2Former, MODEL_ZOO. Other backbones: no published figure of this recipe.
Cost: 16 images of 640 x 640 a step on 8 V100 (swin_large: 16); 44 M parameters and 103 GFLOPs with resnet_50 (PEM's table).
"""

_base_ = ["_base_/ade20k_panoptic.py", "_base_/mask2former.py"]

backbone_recipes = {
    "resnet_50": dict(model=dict(backbone=dict(freeze_norm=True))),
    "swin_large*": dict(model=dict(head=dict(num_queries=200))),
}
