"""Imports of mmcv, mmdet and mmseg that work without compiled ops and say nothing."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TextIO

from .stand_in import install_stand_ins

_PACKAGES = frozenset({"mmcv", "mmdet", "mmengine", "mmseg"})
_PRINTED = frozenset({"Could not import OneDL", "Could not import OneDL. Skipping OneDL datasets."})
_WARNED = (  # (start of the message, category): about the distributions' own code, nothing that a user can act on
    ("Fail to import ``MultiScaleDeformableAttention``", UserWarning),
    ("", ImportWarning),
    ("", DeprecationWarning),
    ("", PendingDeprecationWarning),
    ("", FutureWarning),
    ("", SyntaxWarning),
)


def prepare_openmmlab() -> None:
    """Install the stand-ins for mmcv's compiled ops and keep the import chatter of the OpenMMLab packages from the user.

    Call it before importing ``mmcv.ops``, ``mmdet`` or ``mmseg``; a second call does nothing. Only while one of their
    modules is being imported, the lines they print about optional packages and their deprecation warnings are dropped;
    errors, other output, other warnings and the user's warning filters stay as they are.

    Raises:
        UserError: mmcv is not installed.
    """
    if not any(isinstance(finder, _QuietFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietFinder())
    install_stand_ins()


class _QuietFinder(importlib.abc.MetaPathFinder):
    """Finds OpenMMLab modules as the other finders do, and makes their execution quiet."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in _PACKAGES:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self and hasattr(finder, "find_spec") else None
            if spec is not None:
                return _quiet(spec)
        return None


def _quiet(spec: importlib.machinery.ModuleSpec) -> importlib.machinery.ModuleSpec:
    loader = spec.loader
    if isinstance(loader, importlib.machinery.SourceFileLoader):
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with quiet_imports():
                execute(module)

        loader.exec_module = exec_module  # on this loader only: each module has its own
    return spec


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """While the block runs, drop the known chatter. Filters that the block adds to `warnings` are kept."""
    if isinstance(sys.stdout, _LineFilter):  # an import inside an import
        yield
        return
    with warnings.catch_warnings():
        for message, category in _WARNED:
            warnings.filterwarnings("ignore", message, category)
        before = list(warnings.filters)
        output = _LineFilter(sys.stdout)
        try:
            with contextlib.redirect_stdout(output):
                yield
        finally:
            output.finish()
            added = [entry for entry in warnings.filters if entry not in before]
    warnings.filters[:0] = added


class _LineFilter:
    """A text stream that passes everything on but the lines of `_PRINTED`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pending = ""

    def write(self, text: str) -> int:
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            if line not in _PRINTED:
                self._stream.write(line + "\n")
        if not any(line.startswith(self._pending) for line in _PRINTED):
            self.finish()
        return len(text)

    def finish(self) -> None:
        """Pass on a last line that has no end."""
        self._stream.write(self._pending)
        self._pending = ""

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
