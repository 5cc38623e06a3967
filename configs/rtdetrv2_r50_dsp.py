"""RT-DETRv2-L (R50) with discrete sampling, fine-tuned from the model with bilinear sampling on COCO.

python tools/train.py configs/rtdetrv2_r50_dsp.py --load-from rtdetrv2_r50  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r50_dsp.py --load-from rtdetrv2_r50 --launcher pytorch
python tools/test.py configs/rtdetrv2_r50_dsp.py rtdetrv2_r50_dsp

Expected: box AP 52.9 (AP50 71.3), 12 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.

The commands load the weights of rtdetrv2_r50.
"""

_base_ = "./rtdetrv2_r50.py"

model = dict(arch="v2_r50vd_dsp")
train_cfg = dict(max_epochs=12)
default_hooks = dict(stop_augmentation=dict(epoch=10))
