"""What all datasets of pictures share: the pipeline, the seed of a sample, the class names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmvit.errors import UserError
from mmvit.registry import TRANSFORMS

_TRIALS = 100  # pictures drawn for one sample


def apply(steps: Iterable[Callable[[dict], Any]], sample: dict) -> Any:
    """`sample` after all steps; None as soon as one gives None."""
    for step in steps:
        sample = step(sample)
        if sample is None:
            return None
    return sample


def build_steps(pipeline: Sequence[dict | Callable]) -> list[Callable]:
    """Transforms, those given as config dicts built."""
    return [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]


class PictureDataset(Dataset):
    """A dataset of pictures whose samples run through a pipeline.

    ``dataset[(index, seed)]`` runs the pipeline with ``sample["rng"] = numpy.random.default_rng(seed)``; ``dataset[index]``
    takes the index as seed. A sample therefore depends on these two numbers only. A step of the pipeline may return None: the
    sample is no good, and another picture is drawn with the same generator. ``sample["dataset"]`` is the dataset, for steps
    that need another picture.

    Args:
        pipeline: transforms, as config dicts or callables ``sample -> sample``.
        metainfo: ``classes`` (names in label order), ``palette`` (their RGB colours), and what else a dataset has.
    """

    def __init__(self, pipeline: Sequence[dict | Callable], metainfo: dict[str, list | tuple]) -> None:
        self.pipeline = build_steps(pipeline)
        self._metainfo = metainfo

    @property
    def metainfo(self) -> dict:
        """``classes`` (names in label order), ``palette`` (their RGB colours), and what else the dataset has. A copy."""
        return {key: type(value)(value) for key, value in self._metainfo.items()}

    def __getitem__(self, index: int | tuple[int, int]) -> Any:
        index, seed = index if isinstance(index, tuple) else (index, index)
        rng = np.random.default_rng(seed)
        for _ in range(_TRIALS):
            sample = apply(self.pipeline, {**self.get_sample(index), "rng": rng, "dataset": self})
            if sample is not None:
                return sample
            index = int(rng.integers(len(self)))
        raise UserError(
            f"{_TRIALS} pictures in a row were rejected by the pipeline ({self.image_path(index)} would be next). Check that "
            "the annotations fit the pictures, or loosen the step that rejects them"
        )

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
