"""From collated images to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from mmvit.errors import UserError
from mmvit.registry import MODELS

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class NormalisingPreprocessor(BaseDataPreprocessor):
    """What preprocessors share that normalise images by `mean` and `std`, one value for each channel, from 0 to 255."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> float32."""
        return (image.float() - self.mean) / self.std

    def stack(self, images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """uint8 (3, h_i, w_i) -> float32 (N, 3, *size), normalised, then padded right and below with zeros (the mean)."""
        padded = [F.pad(self.normalise(x), (0, size[1] - x.shape[2], 0, size[0] - x.shape[1])) for x in images]
        return torch.stack(padded).contiguous(memory_format=torch.channels_last)


@MODELS.register_module()
class DetPreprocessor(NormalisingPreprocessor):
    """Normalises uint8 RGB images (3, h_i, w_i), pads them right and below, and stacks them to (N, 3, H, W).

    H and W are those of the largest image of the batch, rounded up to a multiple of `divisor`; each sample's metainfo gets
    them as ``batch_input_shape``, beside ``img_shape``, the part of it that is image.

    Args:
        mean, std: of the channels, from 0 to 255.
        divisor: multiple of the sides.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, divisor: int = 32):
        super().__init__(mean, std)
        self.divisor = divisor

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs, samples = list(data["inputs"]), data.get("data_samples")
        size = tuple(-(-max(image.shape[axis] for image in inputs) // self.divisor) * self.divisor for axis in (1, 2))
        for sample in samples or ():
            sample.set_metainfo(dict(batch_input_shape=size))
        return dict(inputs=self.stack(inputs, size), data_samples=samples)


@MODELS.register_module()
class RTDETRPreprocessor(BaseDataPreprocessor):
    """Stacks uint8 RGB images (3, H, W) to (N, 3, H', W') in [0, 1]; no mean, no standard deviation.

    Sides are padded with zeros, right and below, to multiples of `divisor`; each sample's metainfo gets
    ``batch_input_shape`` (H', W'), to which boxes are normalised. In training, batches are then resized to a side drawn from
    `multi_scale` (nearest neighbour, as published).

    Args:
        multi_scale: sides to draw from, repeated ones more often; None keeps the size.
        divisor: multiple of the sides, the network's coarsest stride.
    """

    def __init__(self, multi_scale: Sequence[int] | None = None, divisor: int = 32):
        super().__init__()
        wrong = [s for s in multi_scale or () if s % divisor]
        if wrong:
            raise UserError(f"RTDETRPreprocessor: multi_scale sides {wrong} are not multiples of {divisor}.")
        self.multi_scale = list(multi_scale or ())
        self.divisor = divisor
        self.use_multi_scale = True

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs, samples = data["inputs"], data.get("data_samples")
        if not isinstance(inputs, Tensor):
            sizes = {tuple(image.shape[-2:]) for image in inputs}
            if len(sizes) > 1:
                raise UserError(
                    f"The images of a batch have different sizes: {sorted(sizes)}. Add a Resize with a fixed size to the "
                    "data pipeline, or use batch size 1."
                )
            inputs = torch.stack(list(inputs))
        height, width = (-(-side // self.divisor) * self.divisor for side in inputs.shape[-2:])
        if (height, width) != tuple(inputs.shape[-2:]):
            inputs = F.pad(inputs, (0, width - inputs.shape[-1], 0, height - inputs.shape[-2]))
        for sample in samples or ():
            sample.set_metainfo(dict(batch_input_shape=(height, width)))
        inputs = inputs.float() / 255
        if training and self.use_multi_scale and self.multi_scale:
            side = self.multi_scale[int(torch.randint(len(self.multi_scale), ()))]
            inputs = F.interpolate(inputs, (side, side), mode="nearest")
        return dict(inputs=inputs.contiguous(memory_format=torch.channels_last), data_samples=samples)
