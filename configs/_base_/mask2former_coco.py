"""Mask2Former's schedule on COCO: 50 epochs at a batch of 16 with two late steps; 100 epochs and 200 queries with Swin-L."""

_base_ = ["mask2former.py"]

param_scheduler = [dict(type="MultiStepLR", milestones=[327_778, 355_092], gamma=0.1, by_epoch=False)]
train_cfg = dict(max_iters=368_750)
backbone_recipes = {
    "resnet_[0-9]*": dict(model=dict(backbone=dict(freeze_norm=True))),
    "swin_large*": dict(
        model=dict(head=dict(num_queries=200)),
        param_scheduler=[dict(type="MultiStepLR", milestones=[655_556, 710_184], gamma=0.1, by_epoch=False)],
        train_cfg=dict(max_iters=737_500),
    ),
}
