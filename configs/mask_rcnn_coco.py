"""Mask R-CNN on COCO, 12 epochs (1x), with Swin-T or any backbone.

python tools/train.py configs/mask_rcnn_coco.py --batch-size 16  # one GPU
torchrun --nproc-per-node 8 tools/train.py configs/mask_rcnn_coco.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask_rcnn_coco.py --backbone pvt_v2_b2
python tools/test.py configs/mask_rcnn_coco.py work_dirs/mask_rcnn_coco/best.pth

Expected: box AP / mask AP with swin_tiny 43.7 / 39.8 (Swin-Transformer-Object-Detection), pvt_tiny 36.7 / 35.1, pvt_small
40.4 / 37.8, pvt_medium 42.0 / 39.0, pvt_large 42.9 / 39.5, pvt_v2_b0 38.2 / 36.2, pvt_v2_b1 41.8 / 38.8, pvt_v2_b2
45.3 / 41.2, pvt_v2_b3 47.0 / 42.5, pvt_v2_b4 47.5 / 42.7, pvt_v2_b5 47.4 / 42.5 (whai362/PVT), resnet_50 38.2 / 34.7
(mmdetection). Agent-PVT, Agent-Swin, CrossFormer, CrossFormer++, iFormer, Next-ViT, PoolFormer, SHViT, ViT-CoMer:
`mmvit.weights.published_figures("mask_rcnn", BACKBONE, "coco", schedule="1x")`. Other backbones: no published figure of this
recipe.
Cost: 16 images of 800 x 1333 a step on 8 GPUs; 48 M parameters and 267 GFLOPs (1280 x 800) with swin_tiny.
"""

_base_ = ["_base_/coco_instance.py", "_base_/detector.py"]

model = dict(arch="mask_rcnn")
