"""RT-DETRv2-HGNetv2-X on COCO.

python tools/train.py configs/rtdetrv2_hgnetv2_x.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_hgnetv2_x.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_hgnetv2_x.py rtdetrv2_hgnetv2_x

Expected: box AP 54.7 (AP50 72.9), 72 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "_base_/rtdetrv2.py"

model = dict(arch="v2_hgnetv2_x")
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(pattern=r"^backbone\.(?!.*norm)", lr=1e-6),
            dict(pattern=r"^(neck|head)\..*norm", weight_decay=0.0),
        ]
    )
)
