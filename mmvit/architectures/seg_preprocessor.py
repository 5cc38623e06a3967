"""From collated images and label maps to a segmenter's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import Tensor

from mmvit.errors import UserError
from mmvit.losses import IGNORE
from mmvit.registry import MODELS

from .preprocessor import IMAGENET_MEAN, IMAGENET_STD, NormalisingPreprocessor


@MODELS.register_module()
class SegPreprocessor(NormalisingPreprocessor):
    """Normalises uint8 RGB images (3, H, W) by mean and standard deviation.

    In training, images are padded right and below with 0 (the mean), label maps with 255, to `size` or to the largest of the
    batch, and stacked to (N, 3, H, W). In evaluation nothing is padded: images of one size are stacked, others, and the views
    of test-time augmentation, stay a list.

    Args:
        mean, std: of the channels, from 0 to 255.
        size: (height, width) of the training crops; None for the largest of each batch.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: Sequence[int] | int | None = None,
    ):
        super().__init__(mean, std)
        self.size = (size, size) if isinstance(size, int) else size

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs, samples = list(data["inputs"]), data.get("data_samples")
        if training:
            return dict(inputs=self._stack_padded(inputs, samples), data_samples=samples)
        if isinstance(inputs[0], (list, tuple)):  # views of test-time augmentation
            return dict(inputs=[[self.normalise(view) for view in views] for views in inputs], data_samples=samples)
        images = [self.normalise(image) for image in inputs]
        if len({image.shape for image in images}) == 1:
            images = torch.stack(images).contiguous(memory_format=torch.channels_last)
        return dict(inputs=images, data_samples=samples)

    def _stack_padded(self, images: list[Tensor], samples: list | None) -> Tensor:
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        if self.size is not None:
            if height > self.size[0] or width > self.size[1]:
                raise UserError(
                    f"A training image has {height} x {width} pixels, more than the crop size {tuple(self.size)} of "
                    "model.data_preprocessor.size: give both the same size (RandomCrop(size=...) in the pipeline)."
                )
            height, width = self.size
        for sample in samples or ():
            labels = sample.gt_sem_seg.data
            padding = (0, width - labels.shape[-1], 0, height - labels.shape[-2])
            sample.gt_sem_seg = PixelData(data=F.pad(labels, padding, value=IGNORE))
        return self.stack(images, (height, width))
