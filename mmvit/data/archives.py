"""Unpacking zip and tar archives: checked, safe, continued where an earlier run stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from mmvit.errors import UserError

_JUNK = ("__MACOSX", ".DS_Store")


def unpack(archive: Path, target: Path, tops: Sequence[str], again: str, progress: bool = True) -> None:
    """Unpacks the folders `tops` of a zip or tar archive into `target`, wherever in the archive they are.

    Every member's CRC is checked; those of a tar archive have none. What an earlier, interrupted call unpacked is kept where
    size and CRC fit.

    Args:
        again: where to get the archive, for messages.

    Raises:
        UserError: the archive is missing, truncated or damaged, holds none of the folders, would write outside `target`, or
            does not fit on the disk.
    """
    try:
        with _open(archive) as opened:
            members = list(_members(opened, tops, archive, again))
            _check_space(members, target)
            for member, path in _track(members, archive.name, progress):
                _extract(opened, member, target / path, archive, again)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        size, kind = archive.stat().st_size, "tar" if archive.suffix == ".tar" else "zip"
        raise UserError(
            f"{archive}: truncated or not a {kind} archive ({size} bytes; {error}). Delete it and get it again: {again}"
        ) from None


class _TarMember:
    """A member of a tar archive under the names that `zipfile.ZipInfo` has."""

    CRC = None

    def __init__(self, info: tarfile.TarInfo) -> None:
        self.info, self.filename, self.file_size, self.is_dir = info, info.name, info.size, info.isdir
        self.external_attr = stat.S_IFLNK << 16 if info.issym() or info.islnk() else 0


class _Tar(contextlib.AbstractContextManager):
    """A tar archive with the methods of `zipfile.ZipFile` that are used here."""

    def __init__(self, path: Path) -> None:
        self.tar = tarfile.open(path)  # noqa: SIM115 - closed on leaving

    def __exit__(self, *_: object) -> None:
        self.tar.close()

    def infolist(self) -> list[_TarMember]:
        return [_TarMember(info) for info in self.tar.getmembers()]

    def open(self, member: _TarMember) -> IO[bytes]:
        return self.tar.extractfile(member.info)


def _open(archive: Path) -> zipfile.ZipFile | _Tar:
    return _Tar(archive) if archive.suffix == ".tar" else zipfile.ZipFile(archive)


def _members(
    opened: zipfile.ZipFile | _Tar, tops: Sequence[str], archive: Path, again: str
) -> Iterable[tuple[zipfile.ZipInfo | _TarMember, PurePosixPath]]:
    """(member, path below the target) of every file to unpack."""
    found = False
    for member in opened.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if ".." in path.parts or path.is_absolute() or ":" in path.parts[0]:
            raise UserError(
                f"{archive}: the member {member.filename!r} would be written outside the folder. Get it again: {again}"
            )
        if member.is_dir() or any(part in _JUNK for part in path.parts):
            continue
        start = next((i for i, part in enumerate(path.parts[:-1]) if part in tops), None)
        if start is None:
            continue
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{archive}: the member {member.filename!r} is a link, not a file. Get it again: {again}")
        found = True
        yield member, PurePosixPath(*path.parts[start:])
    if not found:
        raise UserError(f"{archive}: holds no folder {' or '.join(tops)}. Is it another archive? Get it again: {again}")


def _check_space(members: Iterable[tuple[zipfile.ZipInfo | _TarMember, PurePosixPath]], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    needed = sum(member.file_size for member, path in members if not (target / path).exists())
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{target}: {needed >> 20} MiB are needed to unpack, {free >> 20} MiB are free. Free space, or choose --out"
        )


def _track(members: list, name: str, progress: bool) -> Iterable:
    if not progress:
        return members
    from rich.console import Console
    from rich.progress import track

    return track(members, f"unpacking {name}", console=Console(stderr=True))


def _extract(
    opened: zipfile.ZipFile | _Tar, member: zipfile.ZipInfo | _TarMember, path: Path, archive: Path, again: str
) -> None:
    if _is_there(path, member):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{archive}: the member {member.filename} is damaged ({error or type(error).__name__}). Delete the archive and get "
            f"it again: {again}"
        ) from None


def _is_there(path: Path, member: zipfile.ZipInfo | _TarMember) -> bool:
    if not path.is_file() or path.stat().st_size != member.file_size:
        return False
    if member.CRC is None:
        return True
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc == member.CRC


def merge_into(source: Path, target: Path) -> None:
    """Moves the files of folder `source` into `target`, whole subfolders at once where `target` does not have them."""
    if target.is_dir() and source.is_dir():
        for child in list(source.iterdir()):
            merge_into(child, target / child.name)
        source.rmdir()
    elif target.exists() and target.samefile(source):
        source.unlink()  # links of one file: a replacement would leave both
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
