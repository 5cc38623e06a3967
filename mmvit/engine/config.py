"""Configs: loading, command-line changes, and the check that something reads every key.

A config is a Python file; `_base_` names files it builds on. Names that start with an underscore are local to the file.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mmengine.registry as parents
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from mmengine.registry import Registry
from mmengine.runner import Runner as _Runner
from mmengine.utils import import_modules_from_strings
from torch.utils.data import DataLoader

import mmvit.engine.runner  # noqa: F401 - registers loops, hooks and optimizer parts
from mmvit import registry
from mmvit.engine.arguments import accepted_arguments
from mmvit.engine.optim import PARAMWISE_KEYS, RULE_KEYS
from mmvit.engine.recipes import KEY as BACKBONE_RECIPES
from mmvit.engine.recipes import check_patterns, merged_recipes
from mmvit.errors import UserError, did_you_mean

#: top-level key -> registry of the ``type`` in it
_REGISTRIES: dict[str, Registry] = dict(
    model=registry.MODELS,
    data_preprocessor=registry.MODELS,
    val_evaluator=registry.METRICS,
    test_evaluator=registry.METRICS,
    default_hooks=registry.HOOKS,
    custom_hooks=registry.HOOKS,
    optim_wrapper=registry.OPTIM_WRAPPERS,
    train_cfg=registry.LOOPS,
    val_cfg=registry.LOOPS,
    test_cfg=registry.LOOPS,
    param_scheduler=registry.PARAM_SCHEDULERS,
    visualizer=registry.VISUALIZERS,
    log_processor=registry.LOG_PROCESSORS,
    model_wrapper_cfg=parents.MODEL_WRAPPERS,
)
#: deeper key -> registry; other keys keep the registry of the dict that they are in
_NESTED: dict[str, Registry] = dict(
    dataset=registry.DATASETS,
    sampler=registry.DATA_SAMPLERS,
    batch_sampler=registry.DATA_SAMPLERS,
    pipeline=registry.TRANSFORMS,
    transforms=registry.TRANSFORMS,
    metrics=registry.METRICS,
    optimizer=registry.OPTIMIZERS,
    vis_backends=parents.VISBACKENDS,
    collate_fn=parents.FUNCTIONS,
    worker_init_fn=parents.FUNCTIONS,
)

#: keys of dicts without ``type``, by path; None: free
_LOADER = (
    *(set(inspect.signature(DataLoader).parameters) - {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn"}),
    "dataset",
    "sampler",
    "batch_sampler",
    "collate_fn",
    "worker_init_fn",
    "num_batch_per_epoch",
    "disable_subprocess_warning",
)
_PLAIN: dict[str, tuple[str, ...]] = {
    "train_dataloader": _LOADER,
    "val_dataloader": _LOADER,
    "test_dataloader": _LOADER,
    "auto_scale_lr": ("enable", "base_batch_size"),
    "randomness": ("seed", "diff_rank_seed", "deterministic"),
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit", "num_threads"),
    "env_cfg.mp_cfg": ("mp_start_method", "opencv_num_threads"),
    "env_cfg.dist_cfg": ("backend", "init_backend", "timeout"),
    "optim_wrapper.paramwise_cfg": PARAMWISE_KEYS,
    "optim_wrapper.paramwise_cfg.rules": RULE_KEYS,
    "custom_imports": ("imports", "allow_failed_imports"),
}
#: keys that the engine reads besides the arguments of MMEngine's runner
_ENGINE_KEYS = (
    "device",
    "sync_bn",
    "find_unused_parameters",
    "compile",
    "data",
    BACKBONE_RECIPES,
    "new_classes",
    "model_wrapper_cfg",
    "activation_checkpointing",
    "efficient_conv_bn_eval",
    "custom_imports",
    "backend_args",
)
TOP_KEYS = tuple(sorted({*inspect.signature(_Runner.__init__).parameters, *_ENGINE_KEYS} - {"self", "cfg"}))

#: what the builders, not the classes, read from a dict with ``type`` (by registry name), and what they pass themselves
_BUILDER_KEYS = {
    "hook": ("priority",),
    "optimizer wrapper": ("constructor", "paramwise_cfg"),
    "parameter scheduler": ("convert_to_iter_based",),
}
_GIVEN = {
    "hook": (),
    "loop": ("runner", "dataloader", "evaluator"),
    "optimizer wrapper": (),
    "optimizer": ("params",),
    "parameter scheduler": ("epoch_length",),
    "data sampler": ("dataset", "seed"),
}
_DEFAULT_TYPES = {
    "train_cfg": "EpochBasedTrainLoop",
    "val_cfg": "ValLoop",
    "test_cfg": "TestLoop",
    "optim_wrapper": "AmpWrapper",
    "log_processor": "LogProcessor",
}


def load_config(path: str | Path) -> Config:
    """Read the config at `path` and import its ``custom_imports``; local names (``_name``) are left out."""
    path = Path(path)
    if not path.is_file():
        others = sorted(p.stem for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"There is no config {path}.{did_you_mean(path.stem, others)}")
    try:
        cfg = Config.fromfile(path, lazy_import=False, import_custom_modules=False)
        _import_custom(cfg, path.parent)
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise UserError(f"The config {path} cannot be read: {type(error).__name__}: {lines[0] if lines else ''}") from error
    for key in [key for key in cfg if key.startswith("_")]:
        cfg.pop(key)
    return cfg


def _import_custom(cfg: Config, folder: Path) -> None:
    """Import the modules of ``custom_imports``: installed ones, and files in `folder` or in the current one."""
    wanted = cfg.get("custom_imports")
    if wanted:
        sys.path += [place for place in (str(folder.resolve()), os.getcwd()) if place not in sys.path]
        import_modules_from_strings(**wanted)


def apply_options(cfg: Config, options: Sequence[str]) -> None:
    """Change `cfg` by ``a.b.c=value`` texts; numbers in a path index lists. Values are Python literals, else strings.

    Raises `UserError` for a path whose last step neither exists nor is read by the class it belongs to.
    """
    for option in options:
        path, found, text = option.partition("=")
        if not found or not path:
            raise UserError(f"--cfg-options {option!r} is not of the form key.key=value.")
        _set(cfg, path, _parse(text))
    if options:
        check_config(cfg)


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _set(cfg: Config, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    node: Any = cfg._cfg_dict
    for i, step in enumerate(steps):
        node = _child(node, step, ".".join(steps[:i]), path)
    where = ".".join(steps)
    if isinstance(node, (list, tuple)):
        _child(node, last, where, path)  # an index has to exist
        node[int(last)] = value
    elif isinstance(node, dict):
        if last not in node and where and not _accepts(node, where, last):
            _child(node, last, where, path)
        node[last] = ConfigDict(value) if isinstance(value, dict) else value
    else:
        raise UserError(f"--cfg-options {path}: {where} is {node!r}, which has no parts.")


def _child(node: Any, step: str, where: str, path: str) -> Any:
    place = f"{where} has" if where else "the config has"
    if isinstance(node, dict):
        if step not in node:
            raise UserError(f"--cfg-options {path}: {place} no {step!r}.{did_you_mean(step, node)}")
        return node[step]
    if isinstance(node, (list, tuple)):
        if not step.isdigit() or int(step) >= len(node):
            raise UserError(f"--cfg-options {path}: {place} the entries 0 to {len(node) - 1}, not {step!r}.")
        return node[int(step)]
    raise UserError(f"--cfg-options {path}: {where} is {node!r}, which has no parts.")


def _accepts(node: dict, where: str, key: str) -> bool:
    """Whether `key` may be added to `node`: a known key of a plain dict, or left to the signature check for one with a type."""
    known = _PLAIN.get(_generic(where))
    return "type" in node or where in _DEFAULT_TYPES or (known is not None and key in known) or where == "default_hooks"


def check_config(cfg: Config | dict) -> None:
    """Raise `UserError` for the first key of `cfg` that nothing reads, or type that nothing registers."""
    for key, value in dict(cfg).items():
        if key == BACKBONE_RECIPES:
            continue
        if key not in TOP_KEYS:
            raise UserError(
                f"Config key {key!r}: nothing reads it.{did_you_mean(key, TOP_KEYS)} "
                "(Names that start with an underscore are local to a config file.)"
            )
        _check(value, key, _REGISTRIES.get(key))
    if dict(cfg).get(BACKBONE_RECIPES):
        cfg = cfg if isinstance(cfg, Config) else Config(cfg)
        check_patterns(cfg)
        for pattern, merged in merged_recipes(cfg):
            try:
                check_config(merged)
            except UserError as error:
                raise UserError(f"{BACKBONE_RECIPES}[{pattern!r}]: {error}") from error


def _check(value: Any, path: str, home: Registry | None) -> None:
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check(item, f"{path}[{i}]", home)
    elif isinstance(value, dict):
        generic = _generic(path)
        default = _DEFAULT_TYPES.get(generic)
        if home is not None and ("type" in value or default):
            _check_typed(value, path, home, value.get("type", default))
        elif generic in _PLAIN:
            for key in value:
                if key not in _PLAIN[generic]:
                    raise UserError(f"Config key {path}.{key}: nothing reads it.{did_you_mean(key, _PLAIN[generic])}")
        for key, item in value.items():
            _check(item, f"{path}.{key}", _NESTED.get(key, home))


def _generic(path: str) -> str:
    """The path without list indices."""
    return re.sub(r"\[\d+\]|\.\d+(?=\.|$)", "", path)


def _check_typed(value: dict, path: str, home: Registry, kind: Any) -> None:
    cls = _find(kind, path, home)
    names = accepted_arguments(cls)
    if names is None:
        return
    names |= {"type", "_scope_", *_BUILDER_KEYS.get(home.name, ())}
    for key in value:
        if key not in names:
            shown = sorted(names - {"type", "_scope_", *_GIVEN.get(home.name, ())})
            raise UserError(
                f"Config key {path}.{key}: {getattr(cls, '__name__', cls)} does not read it.{did_you_mean(key, shown)} "
                f"It reads {', '.join(shown)}."
            )
    if "constructor" in value and home.name == "optimizer wrapper":
        _find(value["constructor"], f"{path}.constructor", registry.OPTIM_WRAPPER_CONSTRUCTORS)


def _find(kind: Any, path: str, home: Registry) -> Any:
    """The class that `kind` names."""
    if isinstance(kind, LazyObject):
        return kind.build()
    if not isinstance(kind, str):
        return kind
    found = home.get(kind)
    if found is None:
        raise UserError(f"{path}.type: no {home.name} is called {kind!r}.{did_you_mean(kind, _names(home))}")
    return found


def _names(home: Registry) -> Iterable[str]:
    """Names in `home` and in the registries above it."""
    while home is not None:
        home.import_from_location()
        yield from home.module_dict
        home = home.parent
