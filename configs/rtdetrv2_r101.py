"""RT-DETRv2-X (R101) on COCO.

python tools/train.py configs/rtdetrv2_r101.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r101.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r101.py rtdetrv2_r101

Expected: box AP 54.3 (AP50 72.8), 72 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "_base_/rtdetrv2.py"

model = dict(arch="v2_r101vd")
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(pattern=r"^backbone\.(?!.*norm)", lr=1e-6),
            dict(pattern=r"^(neck|head)\..*norm", weight_decay=0.0),
        ]
    )
)
