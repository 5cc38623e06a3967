"""A small VWFormer on the synthetic shapes: the whole path from data to mIoU on a laptop.

python tools/train.py configs/vwformer_shapes.py
python tools/test.py configs/vwformer_shapes.py work_dirs/vwformer_shapes/best.pth

Expected: mIoU at least 0.80 on the 200 validation pictures, measured at the end of the command.
Cost: less than 6 minutes on 2 CPU cores.
"""

_base_ = "_base_/shapes_semantic.py"

model = dict(type="Segmenter", arch="vwformer", backbone="mit_debug", data_preprocessor=dict(size=(128, 128)))
