"""UPerNet on ADE20K, with Swin-T or any backbone.

python tools/prepare_dataset.py ade20k
python tools/train.py configs/upernet_ade20k.py --batch-size 16  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/upernet_ade20k.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/upernet_ade20k.py --backbone convnext_tiny
python tools/test.py configs/upernet_ade20k.py work_dirs/upernet_ade20k/best.pth  # --tta for several scales

Expected: mIoU 44.41 (45.79 with --tta) with swin_tiny; swin_small 47.72, swin_base 47.99, convnext_tiny 46.11,
convnext_small 48.56, convnext_base 52.13, convnext_large 53.16, convnext_xlarge 53.58 (the last three from ImageNet-22K, crop
640); 160k iterations, tables of open-mmlab/mmsegmentation 1.2.2. Agent-Swin, CrossFormer, CrossFormer++, CSWin, DiNAT, DiNAT_s,
HorNet, iFormer, NAT, Next-ViT, SMT, UniRepLKNet, ViT-CoMer: `mmvit.weights.published_figures("upernet", BACKBONE, "ade20k")`.
Other backbones: no published figure of this recipe.
Cost: 16 images of 512 x 512 a step on 1 to 4 GPUs; 60 M parameters with swin_tiny.
"""

_base_ = ["_base_/ade20k.py", "_base_/upernet.py"]

model = dict(data_preprocessor=dict(size=(512, 512)))
backbone_recipes = {
    "swin_large*": dict(size=640),
    "convnext_base": dict(size=640, model=dict(backbone_pretrained="convnext_base_22k")),
    "convnext_large": dict(size=640, model=dict(backbone_pretrained="convnext_large_22k")),
    "convnext_xlarge": dict(size=640),
    "cswin_large": dict(size=640, model=dict(backbone_pretrained="cswin_large_22k")),
    "hornet_base_gf": dict(size=640),
    "hornet_large_*": dict(size=640),
    "dinat_large": dict(size=640, model=dict(backbone_pretrained="dinat_large_22k")),
    "dinat_s_large": dict(size=640, model=dict(backbone_pretrained="dinat_s_large_22k")),
    "unireplknet_b": dict(size=640, model=dict(backbone_pretrained="unireplknet_b_22k")),
    "unireplknet_l": dict(size=640, model=dict(backbone_pretrained="unireplknet_l_22k")),
    "unireplknet_xl": dict(size=640, model=dict(backbone_pretrained="unireplknet_xl_22k")),
}
