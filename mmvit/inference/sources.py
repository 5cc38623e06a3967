"""From what is named on the command line to pictures and videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmvit.data.images import IMAGE_SUFFIXES
from mmvit.errors import UserError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class Source:
    """One picture or video; `error` says why there is none."""

    path: Path
    error: str | None = None

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def expand(inputs: Iterable[str]) -> list[Source]:
    """The pictures and videos behind files, folders (what lies directly in them) and patterns (``**`` descends), each once.

    An input with nothing behind it becomes a `Source` with an error.
    """
    found: dict[Path, Source] = {}
    for word in inputs:
        for source in _expand_one(word):
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def _expand_one(word: str) -> Sequence[Source]:
    path = Path(word).expanduser()
    if path.is_dir():
        inside = _media(path.iterdir())
        return inside or [Source(path, f"{path} has no pictures or videos directly in it: name files, or use {path}/**/*.jpg")]
    if path.exists():
        return [Source(path)]
    if glob.has_magic(word):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [Source(match) for match in matches if match.is_file()]
        return files or [Source(path, f"no file matches {word}: check the pattern")]
    return [Source(path, f"{path} does not exist: check the path")]


def _media(paths: Iterable[Path]) -> list[Source]:
    return [
        Source(path)
        for path in sorted(paths)
        if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]


class Video:
    """The frames of a video file as uint8 (H, W, 3) RGB; `fps` frames a second, about `count` of them (0: unknown)."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the decoder's own messages: the error below says enough
        import cv2

        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UserError(f"video {path} cannot be opened: it is damaged, or its codec is unknown to OpenCV")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        import cv2

        try:
            while True:
                ok, frame = self._capture.read()
                if not ok:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
