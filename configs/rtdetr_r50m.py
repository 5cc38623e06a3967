"""RT-DETR-R50-m on COCO.

python tools/train.py configs/rtdetr_r50m.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetr_r50m.py --launcher pytorch  # as published
python tools/test.py configs/rtdetr_r50m.py rtdetr_r50m

Expected: box AP 51.3 (AP50 69.5), 72 epochs, PyTorch table of the official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each; 36 M parameters, 100 GFLOPs at 640 x 640.
"""

_base_ = "_base_/rtdetr.py"

model = dict(arch="r50vd_m")
