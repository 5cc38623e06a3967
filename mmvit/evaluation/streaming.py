"""Metrics of MMEngine's runner that count pictures as they come and keep nothing else."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmvit.errors import UserError


class StreamingMetric(BaseMetric):
    """A metric from the sum of an array of counts over all pictures, so that memory does not grow with their number.

    Every picture counts once: one that a sampler hands out again to fill the last round is left out. A subclass says what the
    counts of no picture are (`no_counts`), gives those of each picture to `count` in its `process`, and makes the figures of
    their sum in ``compute_metrics([counts])``, which runs on all processes.

    Args:
        collect_device, prefix, collect_dir: see `BaseMetric`. The figures have no prefix by default.
    """

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None, collect_dir: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix or "none", collect_dir=collect_dir)
        self.prefix = prefix  # the base class would warn of having none
        self._start()

    def _start(self) -> None:
        self._total: np.ndarray | None = None
        self._seen: dict[Hashable, None] = {}  # in order
        self._last: np.ndarray | None = None  # counts of the picture seen last, not yet in the total

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the evaluated dataset."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise UserError(
                f"{type(self).__name__}: the dataset does not say what its classes are: give it metainfo['classes']"
            )
        return tuple(classes)

    @abstractmethod
    def no_counts(self) -> np.ndarray:
        """Zeros of the shape and type of the counts."""

    def count(self, key: Hashable, counts: np.ndarray) -> None:
        """Add the counts of the picture `key`, unless it was added before."""
        if key in self._seen:
            return
        if self._total is None:
            self._total = self.no_counts()
        self._seen[key] = None
        if self._last is not None:
            self._total += self._last
        self._last = counts

    def evaluate(self, size: int) -> dict[str, Any]:
        """The figures of all pictures on all processes; `size`: how many there are in the dataset."""
        counts, pictures = self._sum()
        self._start()
        if pictures < size:
            print_log(
                f"{type(self).__name__}: {pictures} of {size} pictures were evaluated; only they count",
                "current",
                logging.WARNING,
            )
        metrics = self.compute_metrics([counts])
        return {f"{self.prefix}/{key}": value for key, value in metrics.items()} if self.prefix else metrics

    def _sum(self) -> tuple[np.ndarray, int]:
        """Counts of all processes, each picture once, and the number of pictures.

        A sampler that fills its last round repeats pictures as the last of a process: that is why the counts of the last one
        are held apart.
        """
        total = self.no_counts() if self._total is None else self._total
        ranks: list[list[Hashable]] = all_gather_object(list(self._seen))
        lasts = [keys[-1:] for keys in ranks]
        owner: dict[Hashable, int] = {}
        for rank, keys in enumerate(ranks):
            for key in keys[:-1]:
                if owner.setdefault(key, rank) != rank:
                    raise UserError(
                        f"image id {key}: two processes evaluated it, and not as the last one. Evaluate with "
                        "sampler=dict(type='ResumableSampler', shuffle=False, round_up=False)"
                    )
        for rank, keys in enumerate(lasts):
            for key in keys:
                owner.setdefault(key, rank)
        mine = self._last is not None and owner[lasts[get_rank()][0]] == get_rank()
        counts = torch.from_numpy(total + self._last if mine else total)
        all_reduce(counts)
        return counts.numpy(), len(owner)


def plane(values: Any) -> np.ndarray:
    """Values (1, H, W) or (H, W), a tensor on any device or an array, as an array (H, W)."""
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def unique_names(names: tuple[str, ...] | list[str]) -> list[str]:
    """`names`, with the class number behind those that occur twice."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]
