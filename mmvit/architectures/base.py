"""What detectors and segmenters share: the backbone, its weights and its place in the learning-rate decay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmvit.backbones import create_backbone, load_pretrained
from mmvit.errors import UserError
from mmvit.layers.reparam import deploy
from mmvit.registry import MODELS


class Architecture(BaseModel):
    """A model with a backbone of ours.

    Args:
        num_classes: classes.
        backbone: name (`mmvit.list_backbones()`) or settings with a ``name``.
        out_strides: the maps that the other parts ask the backbone for.
        backbone_pretrained: start training from the backbone's published weights: True, or a file, address or index name.
        data_preprocessor: settings of the preprocessor, with its ``type``.

    Attributes:
        task: ``detection`` or ``semantic``.
        eval_resize: settings of the `Resize` that makes a network input of a picture where nothing else is said.
    """

    task: ClassVar[str]
    eval_resize: dict[str, Any]

    def __init__(
        self,
        num_classes: int,
        backbone: str | dict,
        out_strides: Sequence[int],
        backbone_pretrained: bool | str,
        data_preprocessor: dict,
    ):
        super().__init__(data_preprocessor=MODELS.build(data_preprocessor))
        backbone = dict(name=backbone) if isinstance(backbone, str) else dict(backbone)
        self.num_classes = num_classes
        self.auxiliary_head: nn.Module | None = None  # a part that only training uses
        self.backbone_name, self.backbone_pretrained = backbone["name"], backbone_pretrained
        self.backbone = create_backbone(**{"out_strides": out_strides, **backbone})

    def init_weights(self) -> None:
        """Load the backbone's published weights if asked for; called once before training.

        Without them (no network, nothing cached) training starts from random weights, and says so.
        """
        if not self.backbone_pretrained:
            return
        source = self.backbone_name if self.backbone_pretrained is True else self.backbone_pretrained
        try:
            load_pretrained(self.backbone, source)
        except UserError as error:
            if self.backbone_pretrained is not True:
                raise
            print_log(f"The backbone starts from RANDOM weights, which costs accuracy: {error}", "current", logging.WARNING)
        else:
            print_log(f"The backbone starts from the published weights of {source}.", "current")

    def convert(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with official names -> one with ours, its tables resized to this model's windows.

        One that has our names already keeps them. An auxiliary head's weights are left out where there is none.
        """
        if self.auxiliary_head is None:
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith("auxiliary_head.")}
        state = state_dict if has_own_names(self, state_dict) else self.rename(state_dict)
        parts, rest = split_state(state, "backbone")
        return rest | {f"backbone.{k}": v for k, v in self.backbone.fit_tables(parts["backbone"]).items()}

    def deploy(self) -> Architecture:
        """Merge normalisations and branches into convolutions, drop what only training uses, lay weights out channels-last.

        In place; the outputs stay the same (1e-4) and training is no longer possible.
        """
        self.auxiliary_head = None
        deploy(self)
        return self.to(memory_format=torch.channels_last)

    def rename(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with official names -> one with ours."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """Depth of the backbone's last block, see `layer_depth`."""
        return self.backbone.num_layers

    def layer_depth(self, name: str) -> int | None:
        """Depth of a backbone parameter for layer-wise learning-rate decay; None for the other parts."""
        return self.backbone.layer_depth(name.removeprefix("backbone.")) if name.startswith("backbone.") else None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides norms and biases."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


def split_state(state_dict: dict[str, Tensor], *parts: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """A state dict by the first word of its keys: one dict (keys without it) for each of `parts`, and the rest."""
    split: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    rest = {}
    for key, value in state_dict.items():
        part, _, name = key.partition(".")
        if part in split:
            split[part][name] = value
        else:
            rest[key] = value
    return split, rest


def has_own_names(model: nn.Module, state_dict: dict[str, Tensor]) -> bool:
    """Whether `state_dict` has the names of `model`'s parameters already, and no others."""
    return all(name in state_dict for name, _ in model.named_parameters()) and state_dict.keys() <= model.state_dict().keys()
