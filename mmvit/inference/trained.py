"""What a checkpoint of a training run says about itself: its model, input size and class names."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mmvit.errors import UserError
from mmvit.registry import MODELS


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

    Of settings that are not `trusted` (they came with a checkpoint) only classes that this package registers are built.
    """
    settings = {**settings}
    settings.pop("backbone_pretrained", None)
    if isinstance(settings.get("backbone"), Mapping):
        settings["backbone"] = {key: value for key, value in settings["backbone"].items() if key != "pretrained"}
    if classes is not None:
        settings["num_classes"] = classes
    MODELS.import_from_location()
    unknown = [kind for kind in _types(settings) if kind not in MODELS.module_dict]
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


def recorded_resize(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Settings of the `Resize` that a config evaluates with, or None."""
    for loader in ("test_dataloader", "val_dataloader", "train_dataloader"):
        pipeline = (((config or {}).get(loader) or {}).get("dataset") or {}).get("pipeline") or ()
        for step in pipeline:
            if step.get("type") == "Resize":
                return {key: value for key, value in step.items() if key in ("size", "keep_ratio", "interpolation")}
    return None
