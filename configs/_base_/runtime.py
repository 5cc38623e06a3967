"""What every run shares."""

default_scope = "mmvit"
randomness = dict(seed=None)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
sync_bn = "torch"  # several GPUs only
auto_scale_lr = dict(enable=True, base_batch_size=16)
default_hooks = dict(
    runtime=dict(type="RuntimeHook"),
    progress=dict(type="ProgressHook", seconds=10),
    curves=dict(type="CurveHook", interval=20),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, keep=2),
    interrupt=dict(type="InterruptHook"),
)
