"""VWFormer on ADE20K, with Swin-B or any backbone.

python tools/prepare_dataset.py ade20k
torchrun --nproc-per-node 4 tools/train.py configs/vwformer_ade20k.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/vwformer_ade20k.py --backbone convnext_tiny --batch-size 16  # one GPU
python tools/test.py configs/vwformer_ade20k.py work_dirs/vwformer_ade20k/best.pth  # --tta for several scales

Expected: mIoU 52.5 (53.5 with --tta) with swin_base, crop 640; swin_large 54.4, convnext_tiny 47.3 and convnext_small 48.8
(crop 512), convnext_base 53.3, convnext_large 54.3, convnext_xlarge 54.6; 160k iterations, table of yan-hao-tian/VW. The large
backbones start from ImageNet-22K here; the table does not say what the published ones started from. MiT and PVT: no recipe is
published; MiT's is that of SegFormer.
Cost: 16 images of 640 x 640 (512 x 512) a step on 4 GPUs.
"""

_base_ = ["_base_/ade20k.py", "_base_/vwformer.py"]

_val = [
    dict(type="LoadImage"),
    dict(type="Resize", size=(2048, 512), keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="ResizeToMultiple", divisor=64),
    dict(type="LoadSemanticMask"),
    dict(type="PackSegInputs"),
]

model = dict(data_preprocessor=dict(size=(512, 512)))
val_dataloader = dict(dataset=dict(pipeline=_val))
test_dataloader = dict(dataset=dict(pipeline=_val))
backbone_recipes = {
    "swin_base": dict(size=640, model=dict(backbone_pretrained="swin_base_22k")),
    "swin_base_window12": dict(size=640, model=dict(backbone_pretrained="swin_base_window12_22k")),
    "swin_large*": dict(size=640),
    "convnext_base": dict(size=640, model=dict(backbone_pretrained="convnext_base_22k")),
    "convnext_large": dict(size=640, model=dict(backbone_pretrained="convnext_large_22k")),
    "convnext_xlarge": dict(size=640),
}
