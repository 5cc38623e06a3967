"""Mask2Former on COCO instances, 50 epochs with large-scale jitter, with ResNet-50 or any backbone.

python tools/prepare_dataset.py coco
torchrun --nproc-per-node 8 tools/train.py configs/mask2former_coco_instance.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/mask2former_coco_instance.py --backbone swin_tiny --batch-size 16  # one GPU
python tools/test.py configs/mask2former_coco_instance.py mask2former_resnet_50_coco_ins

Expected: mask AP with resnet_50 43.7, resnet_101 44.2, swin_tiny 45.0, swin_small 46.3, swin_base_window12 46.7 (48.1 from
ImageNet-22K: ``--cfg-options model.backbone_pretrained=swin_base_window12_22k``), swin_large_window12 50.1 (100 epochs, 200
queries); facebookresearch/Mask2Former, MODEL_ZOO. Other backbones: no published figure of this recipe.
Cost: 16 images of 1024 x 1024 a step for 368,750 iterations on 8 V100 (swin_large: twice as many on 16); 44 M parameters with
resnet_50.
"""

_base_ = ["_base_/coco_segments.py", "_base_/mask2former_coco.py"]

model = dict(outputs=("instance",))
