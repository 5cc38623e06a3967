"""PEM (arXiv 2402.19422): Mask2Former's recipe at twice the batch, with a higher learning rate and a cosine schedule."""

_base_ = ["mask2former.py"]

model = dict(arch="pem")
optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min_ratio=0.0025, by_epoch=False)]
auto_scale_lr = dict(base_batch_size=32)
