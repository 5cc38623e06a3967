"""RetinaNet on COCO, 12 epochs (1x), with PVT v2 B0 or any backbone; boxes only.

python tools/train.py configs/retinanet_coco.py --batch-size 16  # one GPU
torchrun --nproc-per-node 8 tools/train.py configs/retinanet_coco.py --launcher pytorch  # batch 16, as published
python tools/train.py configs/retinanet_coco.py --backbone pvt_v2_b2
python tools/test.py configs/retinanet_coco.py work_dirs/retinanet_coco/best.pth

Expected: box AP 37.2 with pvt_v2_b0; pvt_v2_b1 41.2, pvt_v2_b2 44.6, pvt_v2_b2_li 43.6, pvt_v2_b3 45.9, pvt_v2_b4 46.1,
pvt_v2_b5 46.2, pvt_tiny 36.7, pvt_small 40.4, pvt_medium 41.9, pvt_large 42.6 (whai362/PVT), resnet_50 36.5 (mmdetection).
Agent-PVT, CrossFormer, CrossFormer++, PoolFormer, SHViT:
`mmvit.weights.published_figures("retinanet", BACKBONE, "coco", schedule="1x")`. Other backbones: no published figure of this
recipe.
Cost: 16 images of 800 x 1333 a step on 8 GPUs; 13 M parameters with pvt_v2_b0.
"""

_base_ = ["_base_/coco_instance.py", "_base_/detector.py"]

_train = [
    dict(type="LoadImage"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", size=(800, 1333), keep_ratio=True, interpolation="cv2_bilinear"),
    dict(type="Flip", p=0.5),
    dict(type="SanitizeBoxes", min_size=1),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(with_mask=False, pipeline=_train))
val_evaluator = dict(iou_types=("bbox",))
test_evaluator = val_evaluator
model = dict(arch="retinanet", backbone=dict(name="pvt_v2_b0"))
backbone_recipes = {
    "resnet_[0-9]*": dict(optim_wrapper=dict(optimizer=dict(lr=0.01))),
    "*pvt_*": dict(optim_wrapper=dict(optimizer=dict(lr=1e-4))),
    "poolformer_*": dict(optim_wrapper=dict(optimizer=dict(lr=1e-4))),
    "agent_pvt_s": dict(model=dict(backbone=dict(drop_path_rate=0.1))),
    "agent_pvt_m": dict(model=dict(backbone=dict(drop_path_rate=0.2))),
    "agent_pvt_l": dict(model=dict(backbone=dict(drop_path_rate=0.3))),
}
