"""PEM's schedule on Cityscapes: 90k iterations."""

_base_ = ["pem.py"]

optim_wrapper = dict(optimizer=dict(lr=7e-4))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False)]
train_cfg = dict(max_iters=90_000)
