"""PEM on Cityscapes panoptic, with ResNet-50, STDC or any backbone.

python tools/prepare_dataset.py cityscapes --panoptic --from DIR
torchrun --nproc-per-node 4 tools/train.py configs/pem_cityscapes_panoptic.py --launcher pytorch  # batch 32, as published
python tools/train.py configs/pem_cityscapes_panoptic.py --backbone stdc_2 --batch-size 32  # one GPU
python tools/test.py configs/pem_cityscapes_panoptic.py work_dirs/pem_cityscapes_panoptic/best.pth

Expected: PQ 61.1 (things 54.3, stuff 66.1) with resnet_50; 90k iterations, tables of NiccoloCavagnero/PEM, which publishes no
weights. Other backbones: no published figure of this recipe.
Cost: 32 images of 512 x 1024 a step on 4 GPUs; 36 M parameters and 237 GFLOPs (1024 x 2048) with resnet_50.
"""

_base_ = ["_base_/cityscapes_panoptic.py", "_base_/pem_cityscapes.py"]

_evaluator = [dict(type="PanopticMetric"), dict(type="SemanticMetric")]
model = dict(outputs=("panoptic", "semantic"))
train_dataloader = dict(batch_size=8)
val_evaluator = _evaluator
test_evaluator = _evaluator
