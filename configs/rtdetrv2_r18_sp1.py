"""RT-DETRv2-S (R18) with 1 sampled point per level on COCO.

python tools/train.py configs/rtdetrv2_r18_sp1.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r18_sp1.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r18_sp1.py rtdetrv2_r18_sp1

Expected: box AP 47.3 (AP50 64.3), 120 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "./rtdetrv2_r18.py"

model = dict(arch="v2_r18vd_sp1")
