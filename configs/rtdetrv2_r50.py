"""RT-DETRv2-L (R50) on COCO.

python tools/train.py configs/rtdetrv2_r50.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r50.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r50.py rtdetrv2_r50

Expected: box AP 53.4 (AP50 71.6), 72 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "_base_/rtdetrv2.py"

model = dict(arch="v2_r50vd")
