"""RT-DETR-R50 on COCO.

python tools/train.py configs/rtdetr_r50.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetr_r50.py --launcher pytorch  # as published
python tools/test.py configs/rtdetr_r50.py rtdetr_r50

Expected: box AP 53.1 (AP50 71.2), 72 epochs, PyTorch table of the official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each; 42 M parameters, 136 GFLOPs at 640 x 640.
"""

_base_ = "_base_/rtdetr.py"

model = dict(arch="r50vd")
