"""How data are loaded and evaluated; the data sets are put in by others, which may also change the sizes of the batches.

Training pictures are shuffled and only full batches are used; every validation picture is evaluated once.
"""

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=False, round_up=False),
)
test_dataloader = val_dataloader
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
