"""Mask2Former on COCO panoptic, 50 epochs with large-scale jitter, with ResNet-50 or any backbone.

python tools/prepare_dataset.py coco --panoptic
torchrun --nproc-per-node 8 tools/train.py configs/mask2former_coco_panoptic.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask2former_coco_panoptic.py --backbone swin_tiny --batch-size 16  # one GPU
python tools/test.py configs/mask2former_coco_panoptic.py mask2former_resnet_50_coco_pan

Expected: PQ / mask AP / mIoU with resnet_50 51.9 / 41.7 / 61.7, resnet_101 52.6 / 42.6 / 62.4, swin_tiny 53.2 / 43.3 / 63.2,
swin_small 54.6 / 44.7 / 64.2, swin_base_window12 55.1 / 45.2 / 65.1 (56.4 / 46.3 / 67.1 from ImageNet-22K:
``--cfg-options model.backbone_pretrained=swin_base_window12_22k``), swin_large_window12 57.8 / 48.6 / 67.4 (100 epochs, 200
queries); facebookresearch/Mask2Former, MODEL_ZOO. Other backbones: no published figure of this recipe.
Cost: 16 images of 1024 x 1024 a step for 368,750 iterations on 8 V100 (swin_large: twice as many on 16); 44 M parameters with
resnet_50.
"""

_base_ = ["_base_/coco_panoptic.py", "_base_/mask2former_coco.py"]
