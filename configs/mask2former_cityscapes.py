"""Mask2Former on Cityscapes for semantic segmentation, with ResNet-50 or any backbone.

python tools/prepare_dataset.py cityscapes --from DIR
torchrun --nproc-per-node 8 tools/train.py configs/mask2former_cityscapes.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask2former_cityscapes.py --backbone swin_tiny --batch-size 16  # one GPU
python tools/test.py configs/mask2former_cityscapes.py mask2former_resnet_50_cityscapes_sem

Expected: mIoU with resnet_50 79.4, resnet_101 80.1, swin_tiny 82.1, swin_small 82.6, swin_base_window12 83.3 and
swin_large_window12 83.3 (both from ImageNet-22K); 90k iterations, facebookresearch/Mask2Former, MODEL_ZOO. (Its figures over
several scales, 0.9 to 2.8 higher, are not measured here.) Other backbones: no published figure of this recipe.
Cost: 16 images of 512 x 1024 a step on 8 V100 (swin_large: 16); 44 M parameters and 523 GFLOPs (1024 x 2048) with resnet_50
(PEM's table).
"""

_base_ = ["_base_/cityscapes_segments.py", "_base_/mask2former.py"]

model = dict(outputs=("semantic",))
train_cfg = dict(max_iters=90_000)
default_hooks = dict(worst=dict(type="WorstImagesHook"))
backbone_recipes = {"swin_base_window12": dict(model=dict(backbone_pretrained="swin_base_window12_22k"))}
