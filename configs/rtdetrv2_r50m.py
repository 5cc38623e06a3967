"""RT-DETRv2-M* (R50-m) on COCO.

python tools/train.py configs/rtdetrv2_r50m.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r50m.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r50m.py rtdetrv2_r50m

Expected: box AP 51.9 (AP50 69.9), 84 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "_base_/rtdetrv2.py"

model = dict(arch="v2_r50vd_m")
train_cfg = dict(max_epochs=84)
default_hooks = dict(stop_augmentation=dict(epoch=81))
