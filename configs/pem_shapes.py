"""A small PEM on the synthetic shapes: the whole path from data to panoptic quality on a laptop.

python tools/train.py configs/pem_shapes.py
python tools/test.py configs/pem_shapes.py work_dirs/pem_shapes/best.pth

Expected: PQ at least 0.60 on the 200 validation pictures, measured at the end of the command.
Cost: less than 10 minutes on 2 CPU cores.
"""

_base_ = "_base_/shapes_panoptic.py"

model = dict(
    type="MaskSegmenter",
    arch="pem",
    backbone="resnet_debug",
    criterion=dict(num_points=1024),
    outputs=("panoptic",),
)
