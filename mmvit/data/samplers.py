"""The order in which the runner reads a dataset: a pure function of (seed, epoch), so that training can resume anywhere in
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmvit.errors import UserError
from mmvit.registry import DATA_SAMPLERS


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The random seed, in [0, 2**63), of sample `index` in `epoch` of a run seeded with `seed`.

    The upper 63 bits of the first word of ``numpy.random.SeedSequence([seed, epoch, index])``, whose hash is stable across
    NumPy versions.
    """
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> 1)


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Yields ``(index, sample_seed)`` pairs, the same for the same (seed, epoch) whatever the number of workers.

    Rank r of W takes ``order[r::W]``, so W processes with batch b read what one process with batch W*b reads.

    Args:
        dataset: anything with a length. seed: seed of the order and of the samples' random generators, equal on all ranks.
            None: drawn once and shared between ranks.
        shuffle: a new permutation every epoch, else the dataset's order.
        round_up: fill the last round with samples from the start of the order, so that all ranks yield equally many.
            Training needs that; an evaluation that must count every picture once sets False.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, shuffle: bool = True, round_up: bool = True) -> None:
        if len(dataset) == 0:
            raise UserError("the dataset is empty: there is nothing to sample")
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.round_up = round_up
        self.seed = int(sync_random_seed() if seed is None else seed)
        if self.seed < 0:
            raise UserError(f"the sampler's seed must not be negative, got {seed}")
        self.epoch = 0
        self._skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next `__iter__`. MMEngine calls it before every epoch."""
        self.epoch = int(epoch)

    def skip(self, num_samples: int) -> None:
        """The next `__iter__` (only that) starts `num_samples` of this rank's samples into the epoch."""
        if not 0 <= num_samples <= len(self):
            raise UserError(f"cannot skip {num_samples} samples of an epoch that has {len(self)} on this rank")
        self._skip = int(num_samples)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self._skip = self._skip, 0
        indices, seed, epoch = self._rank_order()[start:].tolist(), self.seed, self.epoch
        return ((index, sample_seed(seed, epoch, index)) for index in indices)

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch (`skip` does not change it)."""
        if self.round_up:
            return math.ceil(len(self.dataset) / self.world_size)
        return len(range(self.rank, len(self.dataset), self.world_size))

    def _rank_order(self) -> np.ndarray:
        """Dataset indices of this rank in this epoch, int64 (len(self),)."""
        count = len(self.dataset)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(count) if self.shuffle else np.arange(count)
        if self.round_up:
            order = np.resize(order, math.ceil(count / self.world_size) * self.world_size)
        return order[self.rank :: self.world_size]
