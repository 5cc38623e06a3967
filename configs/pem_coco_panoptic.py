"""PEM on COCO panoptic, with ResNet-50, STDC or any backbone. Not published: the authors trained on other data.

python tools/prepare_dataset.py coco --panoptic
torchrun --nproc-per-node 8 tools/train.py configs/pem_coco_panoptic.py --launcher pytorch  # batch 16
python tools/train.py configs/pem_coco_panoptic.py --backbone stdc_2 --batch-size 16  # one GPU
python tools/test.py configs/pem_coco_panoptic.py work_dirs/pem_coco_panoptic/best.pth

Expected: no published figure; the authors trained on Cityscapes and ADE20K only. Network and losses are
PEM's; data, batch, learning rate and schedule are Mask2Former's on COCO (PQ 51.9 with resnet_50).
Cost: 16 images of 1024 x 1024 a step for 368,750 iterations on 8 GPUs; 36 M parameters with resnet_50.
"""

_base_ = ["_base_/coco_panoptic.py", "_base_/mask2former_coco.py"]

model = dict(arch="pem")
