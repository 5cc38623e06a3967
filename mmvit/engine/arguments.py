"""Which keyword arguments a class reads."""

from __future__ import annotations

import inspect
from typing import Any


def accepted_arguments(cls: Any) -> set[str] | None:
    """Names of the arguments that class or function `cls` takes; None when that cannot be told.

    A class whose ``__init__`` takes ``**kwargs`` also takes what the next ``__init__`` of its bases does; when there is none
    left, it hands them to something else, and anything may be right.
    """
    if not inspect.isclass(cls):
        signature = inspect.signature(cls)
        return None if _takes_any(signature) else set(signature.parameters)
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__ == "torch.nn.modules.module":  # takes anything, reads nothing
            break
        if base is object:
            return None if names else names
        if "__init__" not in vars(base):
            continue
        try:
            signature = inspect.signature(vars(base)["__init__"])
        except (TypeError, ValueError):
            return None
        names |= {
            name
            for name, parameter in signature.parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        if not _takes_any(signature):
            break
    return names - {"self"}


def _takes_any(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
