"""RT-DETRv2-M* (R50-m) with discrete sampling, fine-tuned from the model with bilinear sampling on COCO.

python tools/train.py configs/rtdetrv2_r50m_dsp.py --load-from rtdetrv2_r50m  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/rtdetrv2_r50m_dsp.py --load-from rtdetrv2_r50m --launcher pytorch
python tools/test.py configs/rtdetrv2_r50m_dsp.py rtdetrv2_r50m_dsp

Expected: box AP 51.4 (AP50 69.7), 36 epochs, official repository (lyuwenyu/RT-DETR).
Cost: 4 GPUs with 4 images each, fp16.

The commands load the weights of rtdetrv2_r50m.
"""

_base_ = "./rtdetrv2_r50m.py"

model = dict(arch="v2_r50vd_m_dsp")
train_cfg = dict(max_epochs=36)
default_hooks = dict(stop_augmentation=dict(epoch=33))
