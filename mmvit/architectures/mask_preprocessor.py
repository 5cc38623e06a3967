"""From collated images and segments to the input of a mask classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from mmvit.errors import UserError
from mmvit.registry import MODELS

from .preprocessor import IMAGENET_MEAN, IMAGENET_STD, NormalisingPreprocessor


@MODELS.register_module()
class MaskPreprocessor(NormalisingPreprocessor):
    """Normalises uint8 RGB images (3, h_i, w_i), pads them with zeros right and below, and stacks them to (N, 3, H, W).

    Each sample's metainfo gets ``batch_input_shape`` (H, W); the masks of its ``gt_segments`` are padded alike.

    Args:
        mean, std: of the channels, from 0 to 255.
        size: (H, W) of every batch, as kMaX-DeepLab wants it; None: that of the largest image, rounded up to `divisor`.
        divisor: multiple of the sides.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: Sequence[int] | int | None = None,
        divisor: int = 32,
    ):
        super().__init__(mean, std)
        self.size = (size, size) if isinstance(size, int) else size and tuple(size)
        self.divisor = divisor

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs, samples = list(data["inputs"]), data.get("data_samples")
        largest = tuple(max(image.shape[axis] for image in inputs) for axis in (1, 2))
        size = self.size or tuple(-(-side // self.divisor) * self.divisor for side in largest)
        if largest[0] > size[0] or largest[1] > size[1]:
            raise UserError(
                f"An image has {largest[0]} x {largest[1]} pixels, more than model.data_preprocessor.size={size}: give the "
                "Resize or RandomCrop of the pipeline the same size."
            )
        for sample in samples or ():
            sample.set_metainfo(dict(batch_input_shape=size))
            if training:
                segments = sample.gt_segments
                height, width = segments.masks.shape[-2:]
                segments.masks = F.pad(segments.masks, (0, size[1] - width, 0, size[0] - height))
        return dict(inputs=self.stack(inputs, size), data_samples=samples)
