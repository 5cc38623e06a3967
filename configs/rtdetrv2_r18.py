"""RT-DETRv2-S (R18) on COCO.

python tools/train.py configs/rtdetrv2_r18.py  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r18.py --launcher pytorch  # as published
python tools/test.py configs/rtdetrv2_r18.py rtdetrv2_r18

Expected: box AP 48.1 (AP50 65.1), 120 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.
"""

_base_ = "_base_/rtdetrv2.py"

model = dict(arch="v2_r18vd", data_preprocessor=dict(multi_scale=None))
optim_wrapper = dict(paramwise_cfg=dict(rules=[dict(pattern="norm", weight_decay=0.0)]))
train_cfg = dict(max_epochs=120)
default_hooks = dict(stop_augmentation=dict(epoch=117))
