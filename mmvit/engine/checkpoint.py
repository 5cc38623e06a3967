"""Checkpoints on disk: written atomically, read without running code from the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mmvit.errors import UserError

LAST = "last_checkpoint"


def _write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` with a temporary file beside `path`, sync it to disk and put it in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    with suppress(OSError):  # some file systems do not sync folders
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def atomic_save(obj: Any, path: str | Path) -> None:
    """``torch.save(obj, path)`` that leaves either the old file or the complete new one, whenever it is cut off."""
    _write_atomically(Path(path), lambda file: torch.save(obj, file))


def atomic_text(text: str, path: str | Path) -> None:
    """Write `text` to `path`; a reader sees the old content or the new one."""
    _write_atomically(Path(path), lambda file: file.write(text.encode()))


def remove_leftovers(folder: str | Path) -> None:
    """Delete temporary files of saves that were cut off."""
    for path in Path(folder).glob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """`value` in types that ``torch.load(weights_only=True)`` reads: tensors, containers, numbers and strings."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, set)):
        return [plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if value is None or type(value) in (bool, int, float, complex, str, bytes, torch.dtype, torch.Size):
        return value
    return str(value)


def read_checkpoint(path: str | Path) -> dict:
    """The checkpoint at `path`, on the CPU, loaded with ``weights_only=True``.

    Raises `UserError` naming the file when it is missing, damaged, or needs more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}. Give the path of a .pth file that exists.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than weights "
            f"({type(error).__name__}: {reason[0] if reason else 'no message'}). "
            "Use another checkpoint of the folder, or train without --resume."
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint (a dict with weights).")
    return checkpoint


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a work dir, or None when it has none.

    The file ``last_checkpoint`` names it; a folder that was moved is searched for the same file name, and when that is gone
    too the most recently written ``*.pth`` that can be resumed from is taken.
    """
    folder = Path(folder)
    if (folder / LAST).is_file():
        named = Path((folder / LAST).read_text().strip())
        for path in (named, folder / named.name):
            if path.is_file():
                return path
    found = [path for pattern in ("epoch_*.pth", "iter_*.pth", "interrupt_iter_*.pth") for path in folder.glob(pattern)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
