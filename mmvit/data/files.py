"""Files and folders that appear whole or not at all, and work on many files at once."""

from __future__ import annotations

import contextlib
import multiprocessing
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
            yield from _with_bar(results, what, len(items)) if progress and len(items) >= _MANY else results
        finally:
            pool.shutdown(cancel_futures=True)


def map_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    what: str,
    progress: bool = True,
    per_process: int = 64,
    chunk: int = 8,
    processes: int | None = None,
) -> Iterator[Result]:
    """``work(item)`` in processes, or in this one when there are few items; in their order.

    The processes are new ones (a forked one would inherit the locks of other threads), so a script that comes here needs the
    guard ``if __name__ == "__main__":``.

    Args:
        work: something that can be pickled; each process gets it once.
        what: title of the progress bar on stderr, if `progress` asks for one.
        per_process: items for which a further process pays.
        chunk: items that a process takes at a time.
        processes: their number; None: as many as there are CPUs and as pay.
    """
    items = list(items)
    if processes is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = min(cpus, len(items) // per_process)
    if processes <= 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (work,)) as pool:
        try:
            results = pool.map(_work, items, chunksize=chunk)
            yield from _with_bar(results, what, len(items)) if progress else results
        finally:
            pool.shutdown(cancel_futures=True)


_current: Callable  # work of a process of the pool


def _start(work: Callable) -> None:
    global _current
    _current = work


def _work(item: Item) -> Result:
    return _current(item)


def _with_bar(results: Iterable[Result], what: str, total: int) -> Iterable[Result]:
    from rich.console import Console
    from rich.progress import track

    return track(results, what, total=total, console=Console(stderr=True))
