"""What all datasets of pictures share: the pipeline, the seed of a sample, the class names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmvit.registry import TRANSFORMS


class PictureDataset(Dataset):
    """A dataset of pictures whose samples run through a pipeline.

    ``dataset[(index, seed)]`` runs the pipeline with ``sample["rng"] = numpy.random.default_rng(seed)``; ``dataset[index]``
    takes the index as seed. A sample therefore depends on these two numbers only.

    Args:
        pipeline: transforms, as config dicts or callables ``sample -> sample``.
        metainfo: ``classes`` (names in label order), ``palette`` (their RGB colours), and what else a dataset has.
    """

    def __init__(self, pipeline: Sequence[dict | Callable], metainfo: dict[str, list | tuple]) -> None:
        self.pipeline = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        self._metainfo = metainfo

    @property
    def metainfo(self) -> dict:
        """``classes`` (names in label order), ``palette`` (their RGB colours), and what else the dataset has. A copy."""
        return {key: type(value)(value) for key, value in self._metainfo.items()}

    def __getitem__(self, index: int | tuple[int, int]) -> Any:
        index, seed = index if isinstance(index, tuple) else (index, index)
        sample = self.get_sample(index)
        sample["rng"] = np.random.default_rng(seed)
        for step in self.pipeline:
            sample = step(sample)
        return sample

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    def get_sample(self, index: int) -> dict:
        """The sample before the pipeline. IndexError when there is no such picture."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} in a dataset of {len(self)} pictures")
        return self._sample(index)

    @abstractmethod
    def _sample(self, index: int) -> dict:
        """A new dict with ``img_id``, ``img_path`` and the annotation."""

    @abstractmethod
    def image_path(self, index: int) -> str:
        """Path of the picture."""
