"""kMaX-DeepLab on COCO panoptic, with ResNet-50, ConvNeXt or any backbone.

python tools/prepare_dataset.py coco --panoptic
torchrun --nproc-per-node 8 tools/train.py configs/kmax_coco_panoptic.py --launcher pytorch --batch-size 8  # 64, as published
python tools/train.py configs/kmax_coco_panoptic.py --backbone convnext_tiny
python tools/test.py configs/kmax_coco_panoptic.py kmax_resnet_50_coco_pan

Expected: PQ (things / stuff) with resnet_50 53.3 (58.8 / 45.0), convnext_tiny 55.5 (61.4 / 46.7), convnext_small 56.7
(62.7 / 47.7), convnext_base 57.2 (63.4 / 47.9), convnext_large 57.9 (64.3 / 48.4), the ConvNeXts from ImageNet-22K; 150k
iterations, table of bytedance/kmax-deeplab. Other backbones: no published figure of this recipe.
Cost: 64 images of 1281 x 1281 a step, 53 hours on 32 V100 with resnet_50; 57 M parameters, 72 M in training.
"""

_base_ = ["_base_/kmax_panoptic.py", "_base_/kmax.py"]

data = "coco"

model = dict(data_preprocessor=dict(size=(1281, 1281)))
