"""RT-DETR-R101 on COCO.

python tools/train.py configs/rtdetr_r101.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetr_r101.py --launcher pytorch  # as published
python tools/test.py configs/rtdetr_r101.py rtdetr_r101

Expected: box AP 54.3 (AP50 72.8), 72 epochs, PyTorch table of the official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each; 76 M parameters, 259 GFLOPs at 640 x 640.
"""

_base_ = "_base_/rtdetr.py"

model = dict(arch="r101vd")
optim_wrapper = dict(paramwise_cfg=dict(rules=[dict(pattern=r"^backbone\.", lr=1e-6)]))
