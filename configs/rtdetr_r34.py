"""RT-DETR-R34 on COCO.

python tools/train.py configs/rtdetr_r34.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetr_r34.py --launcher pytorch  # as published
python tools/test.py configs/rtdetr_r34.py rtdetr_r34

Expected: box AP 48.9 (AP50 66.8), 72 epochs, PyTorch table of the official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each; 31 M parameters, 92 GFLOPs at 640 x 640.
"""

_base_ = "./rtdetr_r18.py"

model = dict(arch="r34vd")
