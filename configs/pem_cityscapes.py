"""PEM on Cityscapes for semantic segmentation, with ResNet-50, STDC or any backbone.

python tools/prepare_dataset.py cityscapes --from DIR
torchrun --nproc-per-node 4 tools/train.py configs/pem_cityscapes.py --launcher pytorch  # batch 32, as published
python tools/train.py configs/pem_cityscapes.py --backbone stdc_2 --batch-size 32  # one GPU
python tools/test.py configs/pem_cityscapes.py work_dirs/pem_cityscapes/best.pth

Expected: mIoU with resnet_50 79.9, stdc_1 78.3, stdc_2 79.0; 90k iterations, tables of NiccoloCavagnero/PEM, which publishes no
weights. Other backbones: no published figure of this recipe.
Cost: 32 images of 512 x 1024 a step on 4 GPUs; at 1024 x 2048 36 M parameters and 240 GFLOPs with resnet_50, 17 M and 92 GFLOPs
with stdc_1, 21 M and 118 GFLOPs with stdc_2.
"""

_base_ = ["_base_/cityscapes_segments.py", "_base_/pem_cityscapes.py"]

model = dict(outputs=("semantic",))
train_dataloader = dict(batch_size=8)
default_hooks = dict(worst=dict(type="WorstImagesHook"))
