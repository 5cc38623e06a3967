"""A pyramid of maps from a backbone that lacks some of the strides: plain transformers, networks of three stages.

Source: the simple feature pyramid of "Exploring Plain Vision Transformer Backbones for Object Detection" (arXiv 2203.16527).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.norm import LayerNorm2d

from .base import Backbone

INNER = "inner."


def upsampler(channels: int, halvings: int) -> nn.Sequential:
    """`halvings` transposed convolutions that double the sides and halve the channels, with norm and GELU between them."""
    layers: list[nn.Module] = []
    for i in range(halvings):
        before, after = max(channels >> i, 1), max(channels >> (i + 1), 1)
        layers += [nn.ConvTranspose2d(before, after, 2, 2), LayerNorm2d(after, eps=1e-6), nn.GELU()]
    return nn.Sequential(*layers[:-2])


class Pyramid(Backbone):
    """Maps of the asked strides from another backbone. (N, 3, H, W) -> (N, C_i, ceil(H / s_i), ceil(W / s_i)).

    Strides that the backbone has are its own maps, of several stages with one stride the last. A finer one comes from its
    finest map by transposed convolutions, and has 1/2 or 1/4 of its channels; a coarser one from the next finer map by max
    pooling. Stages that are coarser than all asked strides are upsampled and added to the coarsest map, so that nothing of
    the network is lost.

    Weights, freezing, layer depths and recomputation are the inner backbone's; what the pyramid adds learns at the full rate,
    as heads do. Its parameters are named ``pyramid...`` and ``fold...``, the backbone's ``inner...``.

    Args:
        make_inner: makes the backbone from the indices of the stages that it is to return.
        kind: the backbone's class.
        strides: what the pyramid returns, fine to coarse.

    Raises:
        UserError: a stride that no doubling or halving leads to.
    """

    family = "pyramid"
    variants = {}

    def __init__(self, make_inner: Callable[[list[int]], Backbone], kind: type[Backbone], strides: Sequence[int]):
        last = {stride: i for i, stride in enumerate(kind.strides)}  # the last stage of each stride
        sources = {stride: _source(stride, last) for stride in strides}
        coarser = [stride for stride in last if stride > max(strides)]
        needed = sorted({*sources.values(), *coarser})
        super().__init__(range(len(strides)))
        self.inner = make_inner([last[stride] for stride in needed])
        self.with_cp, self.strides = self.inner.with_cp, tuple(strides)
        channels = {stride: width for width, stride in self.inner.feature_info}
        self.places = [needed.index(sources[stride]) for stride in strides]
        widths, steps = [], []
        for stride, source in sources.items():
            halvings = (source // stride).bit_length() - 1
            steps.append(upsampler(channels[source], halvings) if halvings > 0 else _pool(stride // source))
            widths.append(max(channels[source] >> max(halvings, 0), 1))
        self.pyramid = nn.ModuleList(steps)
        self.fold = nn.ModuleList(_unfold(channels[stride], widths[-1], stride // max(strides)) for stride in sorted(coarser))
        self._set_features(widths, strides)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.inner.with_cp = self.with_cp
        sides = [[-(-side // stride) for side in x.shape[-2:]] for stride in self.strides]
        if self.inner.rounds_down:  # fill up to whole patches, so that no pixel is lost
            unit = max(self.inner.strides)
            x = F.pad(x, (0, -x.shape[-1] % unit, 0, -x.shape[-2] % unit))
        maps = self.inner(x)
        outputs = [step(maps[place])[..., :h, :w] for step, place, (h, w) in zip(self.pyramid, self.places, sides)]
        height, width = sides[-1]
        for step, coarse in zip(self.fold, maps[len(maps) - len(self.fold) :]):
            outputs[-1] = outputs[-1] + step(coarse)[..., :height, :width]
        return tuple(outputs)

    @property
    def num_layers(self) -> int:
        return self.inner.num_layers

    def layer_depth(self, name: str) -> int:
        return self.inner.layer_depth(name.removeprefix(INNER)) if name.startswith(INNER) else self.num_layers + 1

    def no_weight_decay(self) -> set[str]:
        return {INNER + name for name in self.inner.no_weight_decay()}

    def dense_only(self) -> set[str]:
        own = {name for name in self.state_dict() if not name.startswith(INNER)}
        return own | {INNER + name for name in self.inner.dense_only()}

    def convert(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names of the inner backbone -> ours."""
        return {INNER + name: value for name, value in self.inner.convert(state_dict).items()}

    def fit_tables(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        inner = {name.removeprefix(INNER): value for name, value in state_dict.items() if name.startswith(INNER)}
        fitted = {INNER + name: value for name, value in self.inner.fit_tables(inner).items()}
        return {name: value for name, value in state_dict.items() if not name.startswith(INNER)} | fitted


def _source(stride: int, known: dict[int, int]) -> int:
    """The stride among `known` that a map of `stride` is made from: the next finer one, else the finest."""
    source = max((s for s in known if s <= stride), default=min(known))
    ratio, rest = divmod(max(stride, source), min(stride, source))
    if rest or ratio & (ratio - 1):
        raise UserError(f"No map of stride {stride} can be made from strides {', '.join(map(str, known))}: ask for others.")
    return source


def _pool(factor: int) -> nn.Module:
    return nn.MaxPool2d(factor, factor, ceil_mode=True) if factor > 1 else nn.Identity()


def _unfold(channels: int, out_channels: int, factor: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, out_channels, factor, factor)
