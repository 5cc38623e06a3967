"""RT-DETRv2-S (R18) with 2 sampled points per level on COCO.

python tools/train.py configs/rtdetrv2_r18_sp2.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r18_sp2.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r18_sp2.py rtdetrv2_r18_sp2

Expected: box AP 47.7 (AP50 64.7), 120 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "./rtdetrv2_r18.py"

model = dict(arch="v2_r18vd_sp2")
