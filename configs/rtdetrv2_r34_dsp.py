"""RT-DETRv2-M (R34) with discrete sampling, fine-tuned from the model with bilinear sampling on COCO.

python tools/train.py configs/rtdetrv2_r34_dsp.py --load-from rtdetrv2_r34  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r34_dsp.py --load-from rtdetrv2_r34 --launcher pytorch
python tools/test.py configs/rtdetrv2_r34_dsp.py rtdetrv2_r34_dsp

Expected: box AP 49.2 (AP50 67.1), 12 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.

The commands load the weights of rtdetrv2_r34.
"""

_base_ = "./rtdetrv2_r34.py"

model = dict(arch="v2_r34vd_dsp")
train_cfg = dict(max_epochs=12)
default_hooks = dict(stop_augmentation=dict(epoch=10))
