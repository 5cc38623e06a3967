"""What a checkpoint of a training run says about itself: its model, input size and class names."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from mmvit.data import Resize, ResizeToMultiple, TestTimeAug
from mmvit.errors import UserError
from mmvit.registry import MODELS

#: Parts of other packages that a checkpoint's settings may name, as the published heads do.
FOREIGN = frozenset(
    ("mmseg.UPerHead", "mmseg.FCNHead", "mmseg.SegformerHead", "mmseg.CrossEntropyLoss", "BN", "SyncBN", "GN", "ReLU")
)


def recorded_config(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config that a checkpoint's meta data hold as text, or None.

    The text is read as data, never run: literals and ``dict(...)`` only.
    """
    text = meta.get("cfg")
    if not isinstance(text, str):
        return None
    try:
        return {statement.targets[0].id: _value(statement.value) for statement in ast.parse(text).body}
    except (AttributeError, SyntaxError, ValueError, RecursionError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return (list if isinstance(node, ast.List) else tuple)(_value(item) for item in node.elts)
    return ast.literal_eval(node)


def build_model(settings: Mapping[str, Any], classes: int | None, source: str, trusted: bool) -> nn.Module:
    """The model of a config, with random weights and `classes` classes (None: as the settings say).

    Of settings that are not `trusted` (they came with a checkpoint) only classes that this package registers, and those of
    `FOREIGN`, are built.
    """
    settings = {**settings}
    settings.pop("backbone_pretrained", None)
    if isinstance(settings.get("backbone"), Mapping):
        settings["backbone"] = {key: value for key, value in settings["backbone"].items() if key != "pretrained"}
    if classes is not None:
        settings["num_classes"] = classes
    MODELS.import_from_location()
    unknown = [kind for kind in _types(settings) if kind not in MODELS.module_dict and kind not in FOREIGN]
    if unknown and not trusted:
        raise UserError(
            f"{source} names a model part {unknown[0]!r} that mmvit does not have: use the mmvit that made it, or "
            "give its --config"
        )
    try:
        return MODELS.build(dict(settings))
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"the model of {source} cannot be built ({error}): use the mmvit that made it") from error


def _types(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "type" in value:
            yield value["type"]
        for item in value.values():
            yield from _types(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _types(item)


#: What a picture goes through between loading and packing in an evaluation.
STEPS = {"Resize": Resize, "ResizeToMultiple": ResizeToMultiple, "TestTimeAug": TestTimeAug}
Steps = list[Callable[[dict], dict]]


def recorded_steps(config: Mapping[str, Any] | None) -> Steps | None:
    """The transforms of `STEPS` that a config evaluates with, perhaps none; None where it does not say.

    Settings that they do not know are left out. A config that gives them too few (one of another toolkit) does not say.
    """
    for loader in ("test_dataloader", "val_dataloader", "train_dataloader"):
        pipeline = (((config or {}).get(loader) or {}).get("dataset") or {}).get("pipeline") or ()
        chosen = [step for step in pipeline if step.get("type") in STEPS]
        if chosen or (pipeline and loader != "train_dataloader"):
            steps = [_step(step) for step in chosen]
            return None if None in steps else steps
    return None


def _step(settings: Mapping[str, Any]) -> Callable[[dict], dict] | None:
    kind = STEPS[settings["type"]]
    signature = inspect.signature(kind)
    arguments = {key: value for key, value in settings.items() if key in signature.parameters}
    try:
        signature.bind(**arguments)
    except TypeError:
        return None
    return kind(**arguments)
