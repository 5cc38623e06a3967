"""Files and folders that appear whole or not at all, and work on many files at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mmvit.errors import UserError

_MANY = 300  # items from which on a progress bar is shown

Item, Result = TypeVar("Item"), TypeVar("Result")


@contextlib.contextmanager
def draft_folder(root: Path) -> Iterator[Path]:
    """A new folder beside `root`, to be renamed to it when it is complete; removed at the end if it is still there."""
    parent = root.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=parent))
    try:
        draft.chmod(0o755)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def missing_files(paths: Sequence[str]) -> list[str]:
    """Those of `paths` that do not exist; each folder is listed once."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        wanted[os.path.dirname(path)].append(path)
    missing = []
    for folder, inside in wanted.items():
        present = {entry.name for entry in os.scandir(folder)} if os.path.isdir(folder) else set()
        missing += [path for path in inside if os.path.basename(path) not in present]
    return missing


def require_new(folder: Path) -> None:
    """UserError when `folder` exists and holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already. Remove it or choose another folder")


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the file `source`: a hard link, else a symbolic link, else a copy. An existing `target` is replaced."""
    target.unlink(missing_ok=True)
    source = source.resolve()
    for make in (os.link, os.symlink, shutil.copy2):
        with contextlib.suppress(OSError, NotImplementedError):
            make(source, target)
            return
    raise UserError(f"{target}: cannot be written. Check the free space and the permissions")


def for_each(work: Callable[[Item], Result], items: Iterable[Item], what: str, progress: bool = True) -> Iterator[Result]:
    """``work(item)`` in threads, in the order of the items; a progress bar on stderr when there are many."""
    items = list(items)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(work, items)
        try:
            if not progress or len(items) < _MANY:
                yield from results
                return
            from rich.console import Console
            from rich.progress import track

            yield from track(results, what, total=len(items), console=Console(stderr=True))
        finally:
            pool.shutdown(cancel_futures=True)


def map_processes(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, progress: bool = True, inline: int = 64, chunk: int = 8
) -> Iterator[Result]:
    """``work(item)`` in processes, or in this one when there are fewer items than `inline`; in their order, with a progress
    bar on stderr.

    Args:
        work: something that can be pickled.
        chunk: items that a process takes at a time.
    """
    if len(items) < inline:
        yield from map(work, items)
        return
    with ProcessPoolExecutor() as pool:
        results = pool.map(work, items, chunksize=chunk)
        if progress:
            from rich.console import Console
            from rich.progress import track

            results = track(results, what, total=len(items), console=Console(stderr=True))
        yield from results
