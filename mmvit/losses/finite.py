"""Predictions and losses that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmvit.errors import UserError


class NonFiniteError(UserError):
    """A tensor of the training step holds NaN or infinity.

    Attributes:
        tensor_name: which one.
        image_ids: ids of the images concerned (all of the batch where that is not known).
    """

    def __init__(self, tensor_name: str, image_ids: Sequence):
        self.tensor_name, self.image_ids = tensor_name, list(image_ids)
        super().__init__(
            f"{tensor_name} is not finite (images {self.image_ids}). Usual causes: a learning rate that is too high, "
            "fp16 overflow (use --amp bf16), or a broken image or box."
        )


def check_finite(tensors: dict[str, Tensor], image_ids: Sequence) -> None:
    """Raise `NonFiniteError` for the first of `tensors` that holds NaN or infinity; their first axis is the image's.

    One synchronisation with the device where all is well.
    """
    if not tensors or bool(torch.stack([torch.isfinite(t).all() for t in tensors.values()]).all()):
        return
    for name, tensor in tensors.items():
        finite = torch.isfinite(tensor)
        if not finite.all():
            bad = (~finite.flatten(1).all(1)).nonzero().flatten().tolist() if tensor.dim() > 1 else range(len(image_ids))
            raise NonFiniteError(name, [image_ids[i] for i in bad])
