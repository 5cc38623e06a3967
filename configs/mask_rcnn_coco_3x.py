"""Mask R-CNN on COCO, 36 epochs (3x) at several scales, with Swin-T or any backbone.

python tools/train.py configs/mask_rcnn_coco_3x.py --batch-size 16  # one GPU
torchrun --nproc-per-node 8 tools/train.py configs/mask_rcnn_coco_3x.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask_rcnn_coco_3x.py --backbone convnext_tiny
python tools/test.py configs/mask_rcnn_coco_3x.py work_dirs/mask_rcnn_coco_3x/best.pth

Expected: box AP / mask AP with swin_tiny 46.0 / 41.6, swin_small 48.5 / 43.3 (Swin-Transformer-Object-Detection),
convnext_tiny 46.2 / 41.7 (facebookresearch/ConvNeXt), pvt_v2_b0 41.6 / 38.2, pvt_v2_b2 47.8 / 43.1 (whai362/PVT).
Agent-Swin, CrossFormer, CSWin, DiNAT, DiNAT_s, NAT, Next-ViT, SMT, ViT-CoMer:
`mmvit.weights.published_figures("mask_rcnn", BACKBONE, "coco", schedule="3x")`. Other backbones: no published figure of this
recipe.
Cost: 16 images of up to 800 x 1333 a step on 8 GPUs; 48 M parameters with swin_tiny.
"""

_base_ = ["_base_/coco_instance_ms.py", "_base_/detector_3x.py"]

model = dict(arch="mask_rcnn")
