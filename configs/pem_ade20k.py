"""PEM on ADE20K for semantic segmentation, with ResNet-50, STDC or any backbone.

python tools/prepare_dataset.py ade20k
torchrun --nproc-per-node 4 tools/train.py configs/pem_ade20k.py --launcher pytorch  # batch 32, as published
python tools/train.py configs/pem_ade20k.py --backbone stdc_2 --batch-size 32  # one GPU
python tools/test.py configs/pem_ade20k.py work_dirs/pem_ade20k/best.pth

Expected: mIoU with resnet_50 45.5, stdc_1 39.6, stdc_2 45.0; 160k iterations, tables of NiccoloCavagnero/PEM, which publishes
no weights. Other backbones: no published figure of this recipe.
Cost: 32 images of 512 x 512 a step on 4 GPUs; 36 M parameters and 47 GFLOPs with resnet_50, 17 M and 16 GFLOPs with stdc_1,
21 M and 19 GFLOPs with stdc_2.
"""

_base_ = ["_base_/ade20k_segments.py", "_base_/pem.py"]

model = dict(outputs=("semantic",))
train_dataloader = dict(batch_size=8)
default_hooks = dict(worst=dict(type="WorstImagesHook"))
backbone_recipes = {"resnet_50": dict(model=dict(backbone=dict(freeze_norm=True)))}
