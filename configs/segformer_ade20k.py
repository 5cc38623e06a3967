"""SegFormer on ADE20K, with MiT-B0 or any backbone.

python tools/prepare_dataset.py ade20k
python tools/train.py configs/segformer_ade20k.py --batch-size 16  # one GPU
torchrun --nproc-per-node 4 tools/train.py configs/segformer_ade20k.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/segformer_ade20k.py --backbone mit_b2
python tools/test.py configs/segformer_ade20k.py segformer_mit_b0_ade20k  # --tta for several scales

Expected: mIoU 37.41 (38.34 with --tta) with mit_b0; mit_b1 40.97, mit_b2 45.58, mit_b3 47.82, mit_b4 48.46, mit_b5 49.62 (crop
640); 160k iterations, table of open-mmlab/mmsegmentation 1.2.2.
Cost: 16 images of 512 x 512 a step on 1 to 4 GPUs; 4 M parameters with mit_b0.
"""

_base_ = ["_base_/ade20k.py", "_base_/segformer.py"]

model = dict(data_preprocessor=dict(size=(512, 512)))
backbone_recipes = {"mit_b5": dict(size=640)}
