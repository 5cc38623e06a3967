"""RT-DETRv2-S (R18) with discrete sampling, fine-tuned from the model with bilinear sampling on COCO.

python tools/train.py configs/rtdetrv2_r18_dsp.py --load-from rtdetrv2_r18  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r18_dsp.py --load-from rtdetrv2_r18 --launcher pytorch
python tools/test.py configs/rtdetrv2_r18_dsp.py rtdetrv2_r18_dsp

Expected: box AP 47.4 (AP50 64.8), 36 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.

The commands load the weights of rtdetrv2_r18.
"""

_base_ = "./rtdetrv2_r18.py"

model = dict(arch="v2_r18vd_dsp")
train_cfg = dict(max_epochs=36)
default_hooks = dict(stop_augmentation=dict(epoch=33))
