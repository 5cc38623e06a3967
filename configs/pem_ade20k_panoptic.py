"""PEM on ADE20K panoptic, with ResNet-50, STDC or any backbone.

python tools/prepare_dataset.py ade20k --panoptic
torchrun --nproc-per-node 4 tools/train.py configs/pem_ade20k_panoptic.py --launcher pytorch  # batch 32, as published
python tools/train.py configs/pem_ade20k_panoptic.py --backbone stdc_2 --batch-size 32  # one GPU
python tools/test.py configs/pem_ade20k_panoptic.py work_dirs/pem_ade20k_panoptic/best.pth

Expected: PQ 38.5 (things 37.0, stuff 41.1) with resnet_50; 160k iterations, tables of NiccoloCavagnero/PEM, which publishes no
weights. Other backbones: no published figure of this recipe.
Cost: 32 images of 640 x 640 a step on 4 GPUs; 36 M parameters and 47 GFLOPs with resnet_50.
"""

_base_ = ["_base_/ade20k_panoptic.py", "_base_/pem.py"]

_evaluator = [dict(type="PanopticMetric"), dict(type="SemanticMetric")]
model = dict(outputs=("panoptic", "semantic"))
train_dataloader = dict(batch_size=8)
val_evaluator = _evaluator
test_evaluator = _evaluator
backbone_recipes = {"resnet_50": dict(model=dict(backbone=dict(freeze_norm=True)))}
