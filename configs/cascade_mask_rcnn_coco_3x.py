"""Cascade Mask R-CNN on COCO, 36 epochs (3x) at several scales, with Swin-T or any backbone.

python tools/train.py configs/cascade_mask_rcnn_coco_3x.py --batch-size 16  # one GPU
torchrun --nproc-per-node 8 tools/train.py configs/cascade_mask_rcnn_coco_3x.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/cascade_mask_rcnn_coco_3x.py --backbone convnext_base
python tools/test.py configs/cascade_mask_rcnn_coco_3x.py work_dirs/cascade_mask_rcnn_coco_3x/best.pth

Expected: box AP / mask AP with swin_tiny 50.4 / 43.7, swin_small 51.9 / 45.0, swin_base 51.9 / 45.0
(Swin-Transformer-Object-Detection), convnext_tiny 50.4 / 43.7, convnext_small 51.9 / 45.0, convnext_base 52.7 / 45.6,
convnext_large 54.8 / 47.6, convnext_xlarge 55.2 / 47.7 (the last two from ImageNet-22K; facebookresearch/ConvNeXt),
pvt_v2_b2 51.1 / 44.4, pvt_v2_b2_li 50.9 / 44.0 (whai362/PVT). Agent-Swin, CrossFormer, CSWin, DiNAT, DiNAT_s, HorNet, NAT, SMT,
UniRepLKNet: `mmvit.weights.published_figures("cascade_mask_rcnn", BACKBONE, "coco", schedule="3x")`. Other backbones: no
published figure of this recipe.
Cost: 16 images of up to 800 x 1333 a step on 8 GPUs; 86 M parameters and 745 GFLOPs (1280 x 800) with swin_tiny.
"""

_base_ = ["_base_/coco_instance_ms.py", "_base_/detector_3x.py"]

model = dict(arch="cascade_mask_rcnn")
backbone_recipes = {
    "convnext_*": dict(optim_wrapper=dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay=0.7))),
    "convnext_small": dict(model=dict(backbone=dict(drop_path_rate=0.6))),
    "convnext_base": dict(
        model=dict(backbone=dict(drop_path_rate=0.7)), optim_wrapper=dict(paramwise_cfg=dict(layer_decay=0.8))
    ),
    "convnext_large": dict(
        model=dict(backbone=dict(drop_path_rate=0.7), backbone_pretrained="convnext_large_22k"),
        optim_wrapper=dict(optimizer=dict(lr=1e-4)),
    ),
    "convnext_xlarge": dict(model=dict(backbone=dict(drop_path_rate=0.8)), optim_wrapper=dict(optimizer=dict(lr=1e-4))),
    "*nat_*tiny": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "nat_small": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
    "dinat_*small": dict(model=dict(backbone=dict(drop_path_rate=0.5))),
}
