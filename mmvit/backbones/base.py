"""What every backbone promises, and how backbones are found by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmvit.errors import UserError, did_you_mean
from mmvit.layers.drop import DropPath
from mmvit.layers.recompute import recomputed
from mmvit.registry import MODELS


class Backbone(nn.Module):
    """Base class of the backbones.

    A subclass sets `family` and `variants` (arch -> constructor arguments), calls ``super().__init__(out_indices, ...)`` and
    ``self._set_features(channels, strides)`` with the figures of all its stages, and computes the chosen stages in `forward`:
    (N, 3, H, W) -> tuple of (N, C_i, H/s_i, W/s_i), for any H, W >= 32.

    Attributes:
        feature_info: (channels, stride) of each output, in order. Necks and heads read it; no config repeats it.
    """

    family: ClassVar[str]
    variants: ClassVar[dict[str, dict[str, Any]]]
    #: arXiv number of the paper that describes the network; the docstring of the file gives its title.
    arxiv: ClassVar[str] = ""
    #: Other published names of variants -> names of `variants`.
    aliases: ClassVar[dict[str, str]] = {}
    #: Strides of all stages, by which `create_backbone` finds the stages that a head asks for.
    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    #: Whether maps drop the pixels that fill no patch: floor(H / s) in place of ceil(H / s).
    rounds_down: ClassVar[bool] = False
    #: Whether the output of a stage depends on the parameters of this and earlier stages only.
    sequential: ClassVar[bool] = True
    #: Whether batch norms use their running statistics also in training; a constructor may set it, and then calls `train`.
    norm_eval: bool = False
    #: Depth of the last block, see `layer_depth`; set by the constructor.
    num_layers: int

    def __init__(self, out_indices: Sequence[int], with_cp: bool = False):
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.with_cp = with_cp

    @classmethod
    def settings(cls, arch: str, overrides: dict[str, Any]) -> dict[str, Any]:
        """The constructor arguments of the published variant `arch`, changed by those of `overrides` that are not None."""
        if arch not in cls.variants:
            raise UserError(
                f"{cls.__name__} has no variant {arch!r}.{did_you_mean(arch, cls.variants)} "
                f"Known variants: {', '.join(cls.variants)}."
            )
        return {**cls.variants[arch], **{k: v for k, v in overrides.items() if v is not None}}

    def _set_features(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        wrong = [i for i in self.out_indices if not 0 <= i < len(channels)]
        if wrong or not self.out_indices:
            raise UserError(f"{type(self).__name__}: out_indices {self.out_indices} must name stages 0 to {len(channels) - 1}.")
        self.feature_info = [(channels[i], strides[i]) for i in self.out_indices]

    @classmethod
    def map_side(cls, side: int, stride: int) -> int:
        """The side of the map of `stride` of an image whose side is `side` >= 32."""
        return max(side // stride, 1) if cls.rounds_down else -(-side // stride)

    def run_stage(self, stage: nn.Module, *inputs: Any) -> Any:
        """`stage(*inputs)`, recomputed in the backward pass when `with_cp` is set."""
        if self.with_cp and self.training and torch.is_grad_enabled():
            return recomputed(stage, *inputs)
        return stage(*inputs)

    def run_stages(self, x: Tensor, stages: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of the chosen stages, each of which reads the output of the one before; later ones are not computed."""
        outputs = []
        for i, stage in enumerate(stages[: max(self.out_indices) + 1]):
            x = self.run_stage(stage, x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode; frozen batch norms (with `norm_eval`: all) keep their statistics in both."""
        super().train(mode)
        for module in self.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            if self.norm_eval or (module.affine and not module.weight.requires_grad):
                module.eval()
        return self

    def layer_depth(self, name: str) -> int:
        """The depth of parameter `name` for layer-wise learning-rate decay.

        0 is the stem, `num_layers` the last block, and ``num_layers + 1`` what follows it (norms of the outputs), which learns
        at the full rate, as heads do.
        """
        raise UserError(
            f"{type(self).__name__} has no layer depths, which layer-wise learning-rate decay needs: "
            "define `num_layers` and `layer_depth`."
        )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides norms and biases."""
        return set()

    def dense_only(self) -> set[str]:
        """Names of parameters and buffers that classification checkpoints lack (norms of the outputs, say).

        They keep their initial values when `load_pretrained` reads a file without them.
        """
        return set()

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the official names -> one with ours."""
        return state_dict

    def fit_tables(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state_dict` (with our names) with the tables that depend on the image or window size resized to this model's."""
        own = self.state_dict()
        return {
            key: self.fit_table(key, value, own[key]) if key in own and own[key].shape != value.shape else value
            for key, value in state_dict.items()
        }

    def fit_table(self, name: str, value: Tensor, own: Tensor) -> Tensor:
        """The loaded `value` of entry `name`, resized to the shape of `own` if it is such a table, else as it is."""
        return value


def renamed(
    state_dict: dict[str, Tensor],
    names: Sequence[tuple[str, str | Callable[[re.Match], str]]],
    dropped: tuple[str, ...] = ("norm.", "head."),
) -> dict[str, Tensor]:
    """Entries with other names, for `Backbone.convert`.

    Args:
        state_dict: with the official names.
        names: (regular expression of what is in an official name, ours), in order of application.
        dropped: beginnings of the official names of what only a classifier has; these entries go.
    """
    out = {}
    for key, value in state_dict.items():
        if not key.startswith(dropped):
            for theirs, ours in names:
                key = re.sub(theirs, ours, key)
            out[key] = value
    return out


def freeze(*modules: nn.Module) -> None:
    """Stop the training of all parameters of `modules`, and their stochastic depth."""
    for module in modules:
        module.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, DropPath):
                part.rate = 0.0


def named_variants() -> dict[str, tuple[type[Backbone], str]]:
    """Class and variant of each backbone by name, aliases aside."""
    MODELS.import_from_location()
    families = [cls for cls in MODELS.module_dict.values() if isinstance(cls, type) and issubclass(cls, Backbone)]
    return {f"{cls.family}_{arch}": (cls, arch) for cls in families for arch in cls.variants}


def find_backbone(name: str) -> tuple[type[Backbone], str]:
    """The class and the variant of backbone `name` (``<family>_<variant>``; underscores and case do not matter)."""
    table = named_variants()
    names = {f"{cls.family}_{alias}": (cls, arch) for cls, _ in table.values() for alias, arch in cls.aliases.items()}
    plain = {key.replace("_", "").lower(): value for key, value in (names | table).items()}
    found = plain.get(name.replace("_", "").lower())
    if found is None:
        raise UserError(
            f"There is no backbone {name!r}.{did_you_mean(name, table)} `mmvit.list_backbones()` lists all of them."
        )
    return found


def create_backbone(
    name: str,
    *,
    out_indices: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    pretrained: bool | str = False,
    **settings,
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: ``<family>_<variant>``, see `list_backbones`.
        out_indices: the stages to return, coarse last; the family's default if None.
        out_strides: the strides of the maps to return, in place of `out_indices`. Where the backbone has no stage of a
            stride, the result is a `Pyramid` around it.
        pretrained: True loads the published weights (downloaded once), a string a file with official names.
        settings: override the variant's constructor arguments.

    Raises:
        UserError: an unknown name, variant or stage, or weights that do not fit.
    """
    cls, arch = find_backbone(name)
    if out_strides is not None and out_indices is None:
        if not set(out_strides) <= set(cls.strides):
            from .pyramid import Pyramid

            backbone: Backbone = Pyramid(lambda stages: cls(arch=arch, out_indices=stages, **settings), cls, out_strides)
        else:
            last = {stride: i for i, stride in enumerate(cls.strides)}
            backbone = cls(arch=arch, out_indices=[last[stride] for stride in out_strides], **settings)
    else:
        if out_indices is not None:
            settings["out_indices"] = out_indices
        backbone = cls(arch=arch, **settings)
    if pretrained:
        load_pretrained(backbone, f"{cls.family}_{arch}" if pretrained is True else pretrained)
    return backbone


def load_pretrained(backbone: Backbone, source: str) -> None:
    """Load the classification weights of `source` (index name, file or address), without the classifier's own parameters."""
    from mmvit import weights

    state, _ = weights.load_checkpoint(weights.resolve(source))
    state = backbone.fit_tables(backbone.convert(state))
    ours = backbone.state_dict()
    optional = backbone.dense_only()
    missing = [k for k in ours if k not in state and k not in optional and not k.endswith("num_batches_tracked")]
    wrong = [k for k in ours if k in state and state[k].shape != ours[k].shape]
    if missing or wrong:
        network = type(getattr(backbone, "inner", backbone)).__name__
        raise UserError(
            f"The weights of {source!r} do not fit {network}: {len(missing)} keys are missing and "
            f"{len(wrong)} have another shape (first: {(missing + wrong)[0]!r}). Name weights of the same variant."
        )
    backbone.load_state_dict({k: v for k, v in state.items() if k in ours}, strict=False)
