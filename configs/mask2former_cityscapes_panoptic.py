"""Mask2Former on Cityscapes panoptic, with ResNet-50 or any backbone.

python tools/prepare_dataset.py cityscapes --panoptic --from DIR
torchrun --nproc-per-node 8 tools/train.py configs/mask2former_cityscapes_panoptic.py --launcher pytorch  # batch 16
python tools/train.py configs/mask2former_cityscapes_panoptic.py --backbone swin_tiny --batch-size 16  # one GPU
python tools/test.py configs/mask2former_cityscapes_panoptic.py mask2former_resnet_50_cityscapes_pan

Expected: PQ / instance AP / mIoU with resnet_50 62.1 / 37.3 / 77.5, resnet_101 62.4 / 37.7 / 78.6, swin_tiny
63.9 / 39.1 / 80.5, swin_small 64.8 / 40.7 / 81.8, swin_base_window12 66.1 / 42.8 / 82.7 and swin_large_window12
66.6 / 43.6 / 82.9 (both from ImageNet-22K, swin_large with 200 queries); 90k iterations, facebookresearch/Mask2Former,
MODEL_ZOO. Other backbones: no published figure of this recipe.
Cost: 16 images of 512 x 1024 a step on 8 V100 (swin_large: 16); 44 M parameters and 519 GFLOPs (1024 x 2048) with resnet_50
(PEM's table).
"""

_base_ = ["_base_/cityscapes_panoptic.py", "_base_/mask2former.py"]

train_cfg = dict(max_iters=90_000)
backbone_recipes = {
    "swin_base_window12": dict(model=dict(backbone_pretrained="swin_base_window12_22k")),
    "swin_large*": dict(model=dict(head=dict(num_queries=200))),
}
