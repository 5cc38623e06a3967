"""VWFormer on Cityscapes (its Cityscapes head), with ConvNeXt-T or any backbone.

python tools/prepare_dataset.py cityscapes --from DIR
torchrun --nproc-per-node 8 tools/train.py configs/vwformer_cityscapes.py --launcher pytorch  # batch 16
python tools/test.py configs/vwformer_cityscapes.py work_dirs/vwformer_cityscapes/best.pth

Expected: mIoU 81.3 (82.1 with --tta) with convnext_tiny; convnext_small 82.2, convnext_base 83.2, convnext_large 83.4,
convnext_xlarge 83.6; 160k iterations, crop 512 x 1024, table of yan-hao-tian/VW. Of the batch only the 4 images per GPU are
published, not the number of GPUs; 16 is that of ADE20K. What the backbones started from is not published either.
Cost: 16 images of 512 x 1024 a step on 8 GPUs, fp16.
"""

_base_ = ["_base_/cityscapes.py", "_base_/vwformer.py"]

model = dict(arch="vwformer_city", backbone=dict(name="convnext_tiny"), data_preprocessor=dict(size=(512, 1024)))
backbone_recipes = {
    "convnext_base": dict(model=dict(backbone_pretrained="convnext_base_22k")),
    "convnext_large": dict(model=dict(backbone_pretrained="convnext_large_22k")),
}
