"""UPerNet on Cityscapes, with Swin-T or any backbone.

python tools/prepare_dataset.py cityscapes --from DIR
python tools/train.py configs/upernet_cityscapes.py --batch-size 8  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/upernet_cityscapes.py --launcher pytorch  # batch 8
python tools/test.py configs/upernet_cityscapes.py work_dirs/upernet_cityscapes/best.pth

Expected: no figure is published for these backbones. Schedule, crop (512 x 1024), batch (8) and whole-picture test are those of
mmsegmentation 1.2.2 for UPerNet with ResNets (mIoU 78.19 with ResNet-50, 79.40 with ResNet-101, trained with SGD); optimizer,
learning rate and stochastic depth are the backbones' own of ADE20K.
Cost: 8 images of 512 x 1024 a step for 80k iterations on 1 to 4 GPUs; 60 M parameters with swin_tiny.
"""

_base_ = ["_base_/cityscapes.py", "_base_/upernet.py"]

model = dict(data_preprocessor=dict(size=(512, 1024)))
train_cfg = dict(max_iters=80_000)
auto_scale_lr = dict(base_batch_size=8)
