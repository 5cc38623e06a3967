"""Pickles of NumPy arrays, as detectron2's model zoo has them (``.pkl``), read without running code from them.

Of a pickle only plain containers, texts, numbers and arrays of numbers are built. Everything else that it names is refused, and
what it says of an array is checked before it becomes one.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import torch

_CODES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8"))


class ForeignObject(pickle.UnpicklingError):
    """A pickle names something that is no data."""


class _Type:
    """Stands for a NumPy type: its code and byte order."""

    def __init__(self, code: Any, *flags: Any) -> None:
        if code not in _CODES:
            raise ForeignObject(f"NumPy type {code}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Stands for a NumPy array, which its state makes."""

    def __init__(self, *args: Any) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.value = _numbers(data, kind, shape, "F" if fortran else "C")


def _numbers(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    """The array of these bytes, in the machine's byte order; ValueError unless they fit."""
    if not isinstance(kind, _Type):
        raise ForeignObject(f"array of {type(kind).__name__}")
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 had no other bytes
    values = np.frombuffer(data, kind.value).astype(kind.value.newbyteorder("="))
    return values.reshape(tuple(int(side) for side in shape), order=order)


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _numbers(data, kind, shape, "F" if order == "F" else "C")
    return array


def _scalar(kind: Any, data: Any) -> bool | int | float:
    return _numbers(data, kind, (), "C").item()


def _encode(text: str, coding: str) -> bytes:
    if coding != "latin1":
        raise ForeignObject(f"coding {coding}")
    return text.encode(coding)


def _no_bytes() -> bytes:
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,  # of bytes, in protocols before 3, as is the next
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise ForeignObject(f"{module}.{name}") from None


def read_pickle(file: BinaryIO) -> Any:
    """What the pickle holds, arrays as tensors.

    Raises:
        ForeignObject: it holds more than data. Nothing of that was called.
        Exception: it is damaged; of any kind.
    """
    return _tensors(_Unpickler(file, encoding="latin1").load())


def _tensors(value: Any) -> torch.Tensor | Any:
    import torch

    if isinstance(value, _Array):
        return torch.from_numpy(np.array(value.value, order="C"))
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return value
