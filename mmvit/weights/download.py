"""From a name, an address or a path to a local file, of a checkpoint mostly: download once, resume, check."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mmvit.errors import UserError, did_you_mean
from mmvit.weights.catalogue import (
    FILES,
    Published,
    PublishedBackbone,
    backbones,
    index,
    is_published,
    published,
    published_backbone,
)

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # in a row that bring nothing new
BACKOFF = 0.5  # seconds before the second attempt, doubled at each further one
CHUNK = 1 << 18
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pdparams", ".pkl")

Report = Callable[[int, "int | None"], None]  # bytes so far, bytes in all


class _Retry(Exception):
    """A failure that another attempt may mend."""


def cache_dir() -> Path:
    """Folder of the downloaded checkpoints: ``$MMVIT_CACHE``, else ``~/.cache/mmvit/weights``."""
    return Path(os.environ.get("MMVIT_CACHE") or "~/.cache/mmvit/weights").expanduser()


def resolve(name_or_path: str | os.PathLike[str], progress: bool = True) -> Path:
    """The local file of a checkpoint, downloaded first where needed.

    Args:
        name_or_path: a name of the index (model ``rtdetr_r50``, backbone ``presnet_50vd``), an http(s) address, or a path.
        progress: show a progress bar on stderr while downloading.

    Returns:
        Path of the file. A downloaded file's SHA-256 is recorded beside it at the first download (``<file>.sha256``) and
        checked at every later use.

    Raises:
        UserError: unknown name, missing file, failed download or changed file; the message says what to do.
    """
    word = os.fspath(name_or_path)
    if is_published(word):
        return _published(published(word), progress)
    backbone = published_backbone(word)
    if backbone:
        return _listed(backbone, progress)
    if word.startswith(("http://", "https://")):
        # Two addresses may end in the same file name.
        return _fetch(word, cache_dir() / f"{hashlib.sha256(word.encode()).hexdigest()[:8]}-{_file_name(word)}", progress)
    return _local(word)


def fetch(url: str, target: Path, progress: bool = True) -> Path:
    """`target`, downloaded from `url` unless it is there: resumed, by one process at a time, its SHA-256 recorded beside it.

    Raises:
        UserError: failed download, full disk, or a file that has changed since it was downloaded.
    """
    return _fetch(url, target, progress)


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1]) or "weights"


def _published(entry: Published, progress: bool) -> Path:
    return _packaged(entry) if entry.packaged else _listed(entry, progress)


def _listed(entry: Published | PublishedBackbone, progress: bool) -> Path:
    """The file of an entry of the index in the cache, downloaded unless it is there."""
    target = cache_dir() / entry.file_name
    if entry.url:
        return _fetch(entry.url, target, progress, entry.sha256)
    if not target.is_file():
        raise UserError(
            f"the weights of {entry.name} have no address for a download: get the checkpoint by hand from {entry.page} "
            f"and save it as {target}"
        )
    return _checked(f"the checkpoint of {entry.page}", target, entry.sha256)


def _packaged(entry: Published) -> Path:
    path = FILES / str(entry.packaged)
    if not path.is_file():
        raise UserError(f"the weights of {entry.name} are not at {path}: make them with `{entry.made_by}`")
    return path


def _local(word: str) -> Path:
    path = Path(word).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint file: name the file in it")
    if os.sep in word or "/" in word or path.suffix in _SUFFIXES:
        raise UserError(f"checkpoint {path} does not exist: check the path")
    raise UserError(
        f"{word!r} is neither a file nor the name of published weights.{did_you_mean(word, [*index(), *backbones()])} "
        "`mmvit.weights.index()` and `mmvit.weights.backbones()` hold all names."
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def check_sha256(path: Path) -> str | None:
    """Compare a cached file with the SHA-256 recorded when it was downloaded.

    Returns the hash, or None where none was recorded. UserError on a mismatch.
    """
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        return None
    recorded = (sidecar.read_text().split() or [""])[0]
    actual = sha256(path)
    if actual != recorded:
        raise UserError(
            f"{path} has changed since it was downloaded (SHA-256 is {actual}, recorded was {recorded}): "
            f"delete {path} and {sidecar.name}, then run again"
        )
    return actual


def _record_sha256(path: Path, digest: str) -> None:
    temporary = _sidecar(path).with_name(f"{path.name}.sha256.{os.getpid()}")
    temporary.write_text(f"{digest}  {path.name}\n")
    os.replace(temporary, _sidecar(path))


def _fetch(url: str, target: Path, progress: bool, digest: str | None = None) -> Path:
    """`target`, downloaded from `url` unless it is there. One process downloads, others that want the file wait for it.

    `digest`: the SHA-256 that the file must have, or the first digits of it, where known.
    """
    if target.is_file():
        return _checked(url, target, digest)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target, f"waiting for another process that downloads {target.name}"):
            if target.is_file():  # another process was faster
                return _checked(url, target, digest)
            with _progress_bar(target.name, progress) as report:
                _download(url, target, report, digest)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise UserError(
            f"cannot write {target} ({reason}): free space or make the folder writable, or choose another folder"
            f"{' with the environment variable MMVIT_CACHE' if target.parent == cache_dir() else ''}{_alternative(url)}"
        ) from error
    return target


def _checked(url: str, target: Path, digest: str | None = None) -> Path:
    if check_sha256(target) is None:  # put there by hand
        with target.open("rb") as file:
            if _looks_like_html(file.read(512)):
                raise UserError(f"{target} is a web page, not the file: delete it and save {url} in its place")
        actual = sha256(target)
        if digest and not actual.startswith(digest):
            raise UserError(
                f"{target} is not the published file (SHA-256 is {actual}, that of {url} begins with {digest}): "
                f"delete it and save {url} in its place"
            )
        with contextlib.suppress(OSError):  # a read-only cache: nothing to record
            _record_sha256(target, actual)
    return target


@contextlib.contextmanager
def lock(target: Path, waiting: str) -> Iterator[None]:
    """Exclusive between processes, by ``<target>.lock``; released by the system when a process dies. `waiting` is said where
    another process has it.
    """
    from filelock import FileLock, Timeout

    held = FileLock(str(target) + ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr)
        held.acquire()
    except NotImplementedError as error:
        raise OSError(errno.ENOLCK, "this file system has no locks") from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def _progress_bar(name: str, show: bool) -> Iterator[Report]:
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _alternative(url: str) -> str:
    """What else a user can do who wants a model (rather than a backbone to train on)."""
    tasks = {entry.url: entry.task for entry in index().values() if entry.url}
    packaged = [entry.name for entry in index().values() if entry.packaged and entry.task == tasks.get(url)]
    return f", or use `--model {packaged[0]}`, which needs no download" if packaged else ""


def _failure(url: str, target: Path, reason: str) -> UserError:
    return UserError(
        f"cannot download {target.name} from {url} ({reason}): check the network (proxies are taken from "
        f"https_proxy), or put the file by hand at {target}{_alternative(url)}"
    )


def _download(url: str, target: Path, report: Report, digest: str | None = None) -> None:
    """Download `url` to `target` by way of a ``.part`` file that a later attempt, or a later run, continues."""
    part = _Part(target)
    failures, best = 0, part.size
    while True:
        try:
            _transfer(url, part, report)
            break
        except _Retry as problem:
            failures = failures + 1 if part.size <= best else 1
            best = max(best, part.size)
            if failures >= ATTEMPTS:
                raise _failure(url, target, str(problem)) from problem
            time.sleep(BACKOFF * 2 ** (failures - 1))
    with part.path.open("rb") as file:
        head = file.read(512)
    if not head or _looks_like_html(head):
        part.discard()
        raise _failure(url, target, f"the server sent {'a web page instead of the file' if head else 'an empty file'}")
    actual = sha256(part.path)
    if digest and not actual.startswith(digest):
        part.discard()
        raise _failure(url, target, f"the SHA-256 of what arrived is {actual}, that of the published file begins with {digest}")
    _record_sha256(target, actual)
    os.replace(part.path, target)
    part.discard()


class _Part:
    """An unfinished download: the bytes so far, and what identifies the remote file that they belong to."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self._facts = target.with_name(target.name + ".part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def facts(self) -> dict[str, str | int | None]:
        try:
            return json.loads(self._facts.read_text())
        except (OSError, ValueError):
            return {}

    def begin(self, validator: str | None, total: int | None) -> None:
        self._facts.write_text(json.dumps({"validator": validator, "total": total}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)


def _transfer(url: str, part: _Part, report: Report) -> None:
    """One request: add what is missing to `part`. Raises _Retry, or UserError where a repetition is no use."""
    facts, offset = part.facts(), part.size
    if offset and not facts:  # unknown origin
        part.discard()
        offset = 0
    headers = {"User-Agent": "mmvit", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if facts.get("validator"):
            headers["If-Range"] = str(facts["validator"])
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            _receive(response, part, offset, report)
    except urllib.error.HTTPError as error:
        _http_error(error, url, part, offset)
    except urllib.error.URLError as error:
        raise _Retry(f"no connection: {error.reason}") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Retry(f"the connection broke: {error or type(error).__name__}") from error
    except ValueError as error:
        raise _failure(url, part.target, f"not a valid address: {error}") from error


def _http_error(error: urllib.error.HTTPError, url: str, part: _Part, offset: int) -> None:
    reason = f"HTTP {error.code} {error.reason}"
    if error.code == 416 and offset:
        if part.facts().get("total") == offset:
            return  # the former attempt was cut after the last byte
        part.discard()
        raise _Retry(reason) from error
    if error.code in (408, 429) or error.code >= 500:
        raise _Retry(reason) from error
    raise _failure(url, part.target, reason) from error


def _receive(response: http.client.HTTPResponse, part: _Part, offset: int, report: Report) -> None:
    if (response.headers.get_content_type() or "") == "text/html":
        raise _failure(response.url, part.target, "the server sent a web page instead of the file")
    length = response.headers.get("Content-Length")
    total = int(length) if length and length.isdigit() else None
    if response.status == 206:
        start, total = _content_range(response.headers.get("Content-Range", ""))
        if start != offset or total != part.facts().get("total"):
            part.discard()
            raise _Retry("the server answered with another part of the file")
    else:  # the whole file: the server ignores ranges, or the file has changed
        offset = 0
        part.begin(_validator(response), total)
    _check_space(part, offset, total)
    with part.path.open("ab" if offset else "wb") as file:
        done = offset
        report(done, total)
        while block := response.read(CHUNK):
            file.write(block)
            done += len(block)
            report(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done != total:
        if done > total:
            part.discard()
        raise _Retry(f"{done} of {total} bytes arrived")


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What identifies this version of the remote file in an If-Range header (a weak ETag may not be used)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _content_range(value: str) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) of a header such as ``bytes 100-199/200``."""
    span, _, total = value.removeprefix("bytes").strip().partition("/")
    start = span.partition("-")[0]
    return (int(start) if start.isdigit() else None), (int(total) if total.isdigit() else None)


def _check_space(part: _Part, offset: int, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - offset > free:
        raise OSError(errno.ENOSPC, f"{(total - offset) >> 20} MiB needed, {free >> 20} MiB free")


def _looks_like_html(head: bytes) -> bool:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))
