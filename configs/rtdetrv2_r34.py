"""RT-DETRv2-M (R34) on COCO.

python tools/train.py configs/rtdetrv2_r34.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r34.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r34.py rtdetrv2_r34

Expected: box AP 49.9 (AP50 67.5), 120 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "_base_/rtdetrv2.py"

model = dict(arch="v2_r34vd")
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(pattern=r"^backbone\..*norm", lr=5e-5, weight_decay=0.0, optional=True),
            dict(pattern=r"^backbone\.", lr=5e-5),
            dict(pattern=r"^(neck|head)\..*(norm|bias)", weight_decay=0.0),
        ]
    )
)
train_cfg = dict(max_epochs=120)
default_hooks = dict(stop_augmentation=dict(epoch=117))
