"""ResumableSampler: the order is a function of (seed, epoch), shared between ranks, and can be entered anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

import mmvit.data.samplers as samplers
from mmvit.data import ResumableSampler
from mmvit.data.samplers import sample_seed
from mmvit.errors import UserError


class Echo(Dataset):
    """Gives back what it is asked for, with a number drawn from the sample's seed."""

    def __len__(self):
        return 23

    def __getitem__(self, key):
        index, seed = key
        return index, seed, np.random.default_rng(seed).integers(1 << 30)


def sampler(rank=0, world=1, monkeypatch=None, **arguments):
    if monkeypatch is not None:
        monkeypatch.setattr(samplers, "get_dist_info", lambda: (rank, world))
    return ResumableSampler(Echo(), **{"seed": 3, **arguments})


def test_order_depends_on_seed_and_epoch_only():
    first, again = sampler(), sampler()
    epoch0 = list(first)
    assert epoch0 == list(first) == list(again)
    assert sorted(index for index, _ in epoch0) == list(range(23)) and [i for i, _ in epoch0] != list(range(23))
    first.set_epoch(1)
    epoch1 = list(first)
    assert [i for i, _ in epoch1] != [i for i, _ in epoch0]
    assert not {seed for _, seed in epoch0} & {seed for _, seed in epoch1}
    first.set_epoch(0)
    assert list(first) == epoch0
    assert [i for i, _ in sampler(seed=4)] != [i for i, _ in epoch0]
    assert [i for i, _ in sampler(shuffle=False)] == list(range(23))


def test_sample_seed_is_pinned():
    """Resuming across versions needs the same hash for ever."""
    assert sample_seed(0, 0, 0) == int(np.random.SeedSequence([0, 0, 0]).generate_state(1, np.uint64)[0]) >> 1
    assert sample_seed(42, 3, 117) == 3267081460186624783
    assert len({sample_seed(s, e, i) for s in range(5) for e in range(5) for i in range(40)}) == 1000


def test_skip_is_exact_and_used_once():
    whole = list(sampler())
    resumed = sampler()
    resumed.skip(7)
    assert len(resumed) == 23
    assert list(resumed) == whole[7:]
    assert list(resumed) == whole
    resumed.skip(23)
    assert list(resumed) == []
    with pytest.raises(UserError, match="cannot skip 24"):
        resumed.skip(24)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_epoch(monkeypatch, world):
    whole = [index for index, _ in sampler()]
    parts = [list(sampler(rank, world, monkeypatch)) for rank in range(world)]
    size = -(-23 // world)
    assert [len(part) for part in parts] == [size] * world
    woven = [parts[k % world][k // world] for k in range(size * world)]
    assert [i for i, _ in woven[:23]] == whole and [i for i, _ in woven[23:]] == whole[: size * world - 23]
    exact = [sampler(rank, world, monkeypatch, round_up=False) for rank in range(world)]
    assert [len(list(part)) for part in exact] == [len(part) for part in exact]
    assert sorted(i for part in exact for i, _ in part) == list(range(23))


def test_more_ranks_than_samples(monkeypatch):
    monkeypatch.setattr(samplers, "get_dist_info", lambda: (4, 5))
    assert len(list(ResumableSampler([1, 2], seed=0))) == 1
    assert list(ResumableSampler([1, 2], seed=0, round_up=False)) == []


def test_empty_dataset_and_negative_seed():
    with pytest.raises(UserError, match="empty"):
        ResumableSampler([], seed=0)
    with pytest.raises(UserError, match="negative"):
        ResumableSampler([1], seed=-1)


def collect(loader):
    return [tuple(int(value) for value in item) for batch in loader for item in zip(*batch)]


def test_workers_do_not_matter_and_epochs_continue():
    def loader(workers):
        return DataLoader(Echo(), batch_size=4, sampler=sampler(), num_workers=workers, persistent_workers=workers > 0)

    plain, parallel = loader(0), loader(2)
    for epoch in range(2):
        plain.sampler.set_epoch(epoch)
        parallel.sampler.set_epoch(epoch)
        assert collect(plain) == collect(parallel)
    parallel.sampler.skip(8)
    plain.sampler.set_epoch(1)
    assert collect(parallel) == collect(plain)[8:]


def test_runner_builds_it_from_a_config():
    config = {
        "dataset": Echo(),
        "sampler": {"type": "mmvit.ResumableSampler", "shuffle": True},
        "batch_size": 5,
        "num_workers": 0,
        "collate_fn": {"type": "default_collate"},
    }
    assert collect(Runner.build_dataloader(config, seed=3)) == collect(DataLoader(Echo(), batch_size=5, sampler=sampler()))
