"""A small kMaX-DeepLab on the synthetic shapes: the whole path from data to panoptic quality on a laptop.

python tools/train.py configs/kmax_shapes.py
python tools/test.py configs/kmax_shapes.py work_dirs/kmax_shapes/best.pth

Expected: PQ at least 0.60 on the 200 validation pictures, measured at the end of the command.
Cost: less than 10 minutes on 2 CPU cores.
"""

_base_ = "_base_/shapes_panoptic.py"

model = dict(
    type="MaskSegmenter",
    arch="kmax",
    backbone="resnet_debug",
    neck=dict(widths=(32, 32, 16, 16)),
    head=dict(dim=64, drop_path=0.0),
    criterion=dict(num_points=(512, 512)),
    auxiliary_head="coarse",
    outputs=("panoptic",),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_iters=1400, val_interval=350)
