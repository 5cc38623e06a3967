"""``mmvit predict`` and ``demo/image_demo.py``: pictures, folders, patterns and videos in; drawn pictures and a json out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmvit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from mmvit.inference.predictor import Predictor
    from mmvit.inference.results import Detections, Segmentation
    from mmvit.inference.sources import Source

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, video, folder or pattern ('dir/**/*.jpg')")
    parser.add_argument(
        "--model",
        help="model: rtdetr_r50 (boxes; the default), segformer_mit_b0_ade20k (the class of every pixel) ...; rtdetr_shapes, "
        "vwformer_shapes: no download",
    )
    parser.add_argument("--config", metavar="FILE", help="training config of --checkpoint, in place of --model")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: file, address or published name; one of a training run needs neither --model nor --config",
    )
    parser.add_argument("--out", metavar="DIR", default="outputs", help="folder to write to (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as json on stdout, the report on stderr")
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.5,
        metavar="S",
        help="boxes: leave out those below this score, drawn and in the json (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="pictures per forward pass (default: %(default)s)"
    )
    parser.add_argument("--deploy", action="store_true", help="fold batch norm and branches first: same results, faster")
    parser.add_argument(
        "--opacity",
        type=float,
        default=0.5,
        metavar="O",
        help="segmentation and masks: how much the colours cover the picture, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--tta", action="store_true", help="segmentation: average over six scales and mirrored views")
    parser.add_argument("--slide", action="store_true", help="segmentation: predict large pictures window by window")


def run(args: argparse.Namespace) -> int:
    """Find objects (boxes) or the class of every pixel (segmentation) in pictures and videos; draw them and write a json.

    The json holds boxes (and masks) as COCO results, segmentations as pixels of each class; beside it lie PNG files of class
    numbers. Returns 1 if any input failed (the others are done all the same), else 0.
    """
    from mmvit.inference.predictor import Predictor
    from mmvit.inference.sources import expand

    if not 0 <= args.score_thr <= 1:
        raise UserError(f"--score-thr is {args.score_thr:g}: give a number from 0 to 1")
    if not 0 <= args.opacity <= 1:
        raise UserError(f"--opacity is {args.opacity:g}: give a number from 0 to 1")
    sources = expand(args.inputs)
    report = _Report(sys.stderr if args.json else sys.stdout)
    usable = [source for source in sources if source.error is None]
    for source in sources:
        if source.error:
            report.failure(source.error)
    if usable:
        out = _Output(Path(args.out), [source.path for source in usable])
        predictor = Predictor(
            args.model,
            config=args.config,
            checkpoint=args.checkpoint,
            device=args.device,
            score_thr=args.score_thr,
            batch_size=args.batch_size,
            deploy=args.deploy,
            tta=args.tta,
            slide=args.slide,
        )
        kind = _Regions(out, args.opacity) if predictor.task == "semantic" else _Boxes(args.score_thr, args.opacity)
        job = _Job(predictor, kind, out, report)
        try:
            job.pictures([source for source in usable if not source.is_video])
            for source in usable:
                if source.is_video:
                    job.video(source)
        finally:  # what is done stays, whatever stops the rest
            job.finish(print_json=args.json)
    return 1 if report.failures else 0


class _Report:
    """Lines for the user; counts failures."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.failures = 0

    def line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def failure(self, error: UserError | str) -> None:
        self.failures += 1
        print(f"error: {error}", file=sys.stderr, flush=True)


class _Output:
    """File names in the output folder: none twice, none that is an input."""

    def __init__(self, folder: Path, inputs: Sequence[Path]) -> None:
        self.folder = folder
        self._taken = {path.resolve() for path in inputs}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the output folder {folder} ({error.strerror}): choose another with --out") from error

    def path(self, stem: str, suffix: str) -> Path:
        number = 1
        while True:
            path = self.folder / f"{stem}{f'_{number}' if number > 1 else ''}{suffix}"
            if path.resolve() not in self._taken:
                self._taken.add(path.resolve())
                return path
            number += 1

    def write(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror}): free space, or choose another folder with --out"
            ) from error

    def write_json(self, path: Path, value: Any) -> None:
        self.write(path, json.dumps(value, indent=1).encode())


class _Boxes:
    """What the command does with `Detections`."""

    def __init__(self, score_thr: float, opacity: float) -> None:
        self.score_thr, self.opacity = score_thr, opacity

    def draw(self, image: np.ndarray, found: Detections, in_video: bool = False) -> np.ndarray:
        """uint8 (H, W, 3) with boxes or masks."""
        from mmvit.inference.draw import draw_detections

        return draw_detections(image, found, opacity=self.opacity)

    def save_beside(self, path: Path, found: Detections) -> dict[str, Any]:
        """Nothing is written beside the drawn picture."""
        return {}

    def to_json(self, found: Detections, image_id: int) -> list[dict[str, Any]]:
        """What the list of all pictures holds of one."""
        return found.to_coco(image_id)

    def frame_json(self, found: Detections, number: int) -> dict[str, Any]:
        """What the listing of a video holds of one frame."""
        return {"detections": found.to_coco(number)}

    def listed(self, results: Sequence[dict[str, Any]]) -> str:
        """What the list of all pictures holds, for the report."""
        return f"{len(results)} detections"

    def summary(self, found: Detections) -> str:
        """A few words for the report."""
        if not len(found):
            return f"no objects with a score of {self.score_thr:g} or more"
        names = Counter(found.names).most_common(4)
        listed = ", ".join(f"{count} {name}" for name, count in names)
        rest = "" if len(set(found.names)) <= len(names) else ", ..."
        return f"{len(found)} object{'s' if len(found) > 1 else ''} ({listed}{rest})"


class _Regions:
    """What the command does with a `Segmentation`."""

    _VIDEO_ROWS = 3  # of the legend

    def __init__(self, out: _Output, opacity: float) -> None:
        self.out, self.opacity = out, opacity

    def draw(self, image: np.ndarray, found: Segmentation, in_video: bool = False) -> np.ndarray:
        """uint8 (h, w, 3) with colours and a legend; of one size for all frames of a video."""
        from mmvit.inference.draw import draw_segmentation

        return draw_segmentation(image, found, self.opacity, self._VIDEO_ROWS if in_video else None)

    def save_beside(self, path: Path, found: Segmentation) -> dict[str, Any]:
        """Write the PNG of class numbers of picture `path`; its name for the json."""
        index = self.out.path(f"{path.stem}_index", ".png")
        self.out.write(index, found.index_png())
        return {"index_file": str(index)}

    def to_json(self, found: Segmentation, image_id: int) -> list[dict[str, Any]]:
        """What the list of all pictures holds of one."""
        return [{"image_id": image_id, **found.to_dict()}]

    def frame_json(self, found: Segmentation, number: int) -> dict[str, Any]:
        """What the listing of a video holds of one frame."""
        return {"classes": found.to_dict()["classes"]}

    def listed(self, results: Sequence[dict[str, Any]]) -> str:
        """What the list of all pictures holds, for the report."""
        return "their classes with pixel counts"

    def summary(self, found: Segmentation) -> str:
        """A few words for the report."""
        from mmvit.inference.draw import percent

        shares = list(found.shares().items())
        listed = ", ".join(f"{name} {percent(share)}" for name, share in shares[:4])
        return f"{len(shares)} class{'es' if len(shares) > 1 else ''} ({listed}{', ...' if len(shares) > 4 else ''})"


class _Job:
    """Runs a predictor over sources and collects what it finds."""

    def __init__(self, predictor: Predictor, kind: _Boxes | _Regions, out: _Output, report: _Report) -> None:
        self.predictor, self.kind, self.out, self.report = predictor, kind, out, report
        self.results: list[dict[str, Any]] = []
        self._ids: set[int] = set()
        self._done = 0

    def pictures(self, sources: Sequence[Source]) -> None:
        """Predict for pictures. Those that cannot be read are reported, the rest is done."""
        for batch in _batches(self._readable(sources), self.predictor.batch_size):
            start = time.perf_counter()
            results = self.predictor([image for _, image in batch])
            seconds = (time.perf_counter() - start) / len(batch)
            for (source, image), found in zip(batch, results):
                self._save_picture(source.path, image, found, seconds)

    def _readable(self, sources: Sequence[Source]) -> Iterator[tuple[Source, np.ndarray]]:
        from mmvit.data.images import read_image

        for source in sources:
            try:
                yield source, read_image(source.path)
            except UserError as error:
                self.report.failure(error)

    def _save_picture(self, path: Path, image: np.ndarray, found: Any, seconds: float) -> None:
        drawn = self.out.path(path.stem, ".jpg")
        self.out.write(drawn, _jpeg(self.kind.draw(image, found)))
        beside = self.kind.save_beside(path, found)
        self.results += [{**one, "file_name": str(path), **beside} for one in self.kind.to_json(found, self._image_id(path))]
        places = ", ".join([str(drawn), *beside.values()])
        self.report.line(f"{path}: {self.kind.summary(found)}, {1000 * seconds:.0f} ms -> {places}")
        self._done += 1

    def _image_id(self, path: Path) -> int:
        """The number that a COCO file name is, else the smallest that is free."""
        number = int(path.stem) if path.stem.isdecimal() else 1
        while number in self._ids:
            number += 1
        self._ids.add(number)
        return number

    def video(self, source: Source) -> None:
        """Predict for every frame: an mp4 with the drawn frames and a json with what was found in each."""
        try:
            self._video(source.path)
        except UserError as error:
            self.report.failure(error)

    def _video(self, path: Path) -> None:
        from mmvit.inference.sources import Video

        video = Video(path)
        drawn, start, frames = self.out.path(path.stem, ".mp4"), time.perf_counter(), []
        with _Writer(drawn, video.fps) as writer, _progress(path.name, video.count) as advance:
            for batch in _batches(video, self.predictor.batch_size):
                for image, found in zip(batch, self.predictor(batch)):
                    writer.add(self.kind.draw(image, found, in_video=True))
                    number = len(frames)
                    when = {"frame": number, "seconds": round(number / video.fps, 4)}
                    frames.append({**when, **self.kind.frame_json(found, number)})
                    advance()
        if not frames:
            raise UserError(f"video {path} has no frame that can be read: it is damaged, or its codec is unknown to OpenCV")
        listing = self.out.path(path.stem, ".json")
        self.out.write_json(listing, {"file_name": str(path), "fps": video.fps, "frames": frames})
        seconds = (time.perf_counter() - start) / len(frames)
        self.report.line(f"{path}: {len(frames)} frames, {1000 * seconds:.0f} ms per frame -> {drawn}, {listing}")

    def finish(self, print_json: bool) -> None:
        """Write the json of the pictures and say where things are."""
        if not self._done:
            return
        listing = self.out.folder / "predictions.json"
        self.out.write_json(listing, self.results)
        pictures = f"{self._done} picture{'s' if self._done > 1 else ''} drawn in {self.out.folder}"
        self.report.line(f"{pictures}, {self.kind.listed(self.results)} in {listing}")
        if print_json:
            print(json.dumps(self.results, indent=1))


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _jpeg(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class _Writer:
    """An mp4 file; opened at the first frame, whose size it takes. Sides are cut to even numbers, as the codec wants."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: Any = None

    def __enter__(self) -> _Writer:
        return self

    def add(self, image: np.ndarray) -> None:
        """Append uint8 (H, W, 3) RGB."""
        import cv2

        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        if self._writer is None:
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"cannot write video {self.path}: choose another folder with --out")
        self._writer.write(cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR))

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.release()


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields the function that moves it on by one frame."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task(name, total=total or None)
        yield lambda: bar.advance(task)
