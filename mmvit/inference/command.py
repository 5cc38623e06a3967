"""``mmvit predict`` and ``demo/image_demo.py``: pictures, folders, patterns and videos in; drawn pictures and a json out."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmvit.errors import UserError
from mmvit.inference.kinds import Boxes, Output, Picture, Regions, Segments

if TYPE_CHECKING:
    import numpy as np

    from mmvit.inference.predictor import Predictor
    from mmvit.inference.sources import Source

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, video, folder or pattern ('dir/**/*.jpg')")
    parser.add_argument(
        "--model",
        help="model: rtdetr_r50 (boxes; the default), segformer_mit_b0_ade20k (the class of every pixel), "
        "mask2former_resnet_50_coco_pan (objects and regions) ...; rtdetr_shapes, vwformer_shapes: no download",
    )
    parser.add_argument("--config", metavar="FILE", help="training config of --checkpoint, in place of --model")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: file, address or published name; one of a training run needs neither --model nor --config",
    )
    parser.add_argument(
        "--task",
        choices=("panoptic", "instance", "semantic"),
        help="what to ask of a mask classifier that can do several (default: panoptic, or what it was trained for)",
    )
    parser.add_argument("--out", metavar="DIR", default="outputs", help="folder to write to (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as json on stdout, the report on stderr")
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.5,
        metavar="S",
        help="boxes and instances: leave out those below this score, drawn and in the json (default: %(default)s)",
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
        help="segments and masks: how much the colours cover the picture, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--tta", action="store_true", help="segmentation: average over six scales and mirrored views")
    parser.add_argument("--slide", action="store_true", help="segmentation: predict large pictures window by window")


def run(args: argparse.Namespace) -> int:
    """Find objects (boxes, masks), the class of every pixel, or both (panoptic) in pictures and videos; draw and write them.

    The json holds boxes (and masks) as COCO results, segmentations as pixels of each class, beside which lie PNG files of class
    numbers. Panoptic results are a COCO panoptic json and PNGs. Returns 1 if any input failed (the others are done all the
    same), else 0.
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
        out = Output(Path(args.out), [source.path for source in usable])
        predictor = Predictor(
            args.model,
            config=args.config,
            checkpoint=args.checkpoint,
            device=args.device,
            score_thr=args.score_thr,
            batch_size=args.batch_size,
            deploy=args.deploy,
            task=args.task,
            tta=args.tta,
            slide=args.slide,
        )
        kind = _kind_of(predictor, out, args)
        job = _Job(predictor, kind, out, report)
        try:
            job.pictures([source for source in usable if not source.is_video])
            for source in usable:
                if source.is_video:
                    job.video(source)
        finally:  # what is done stays, whatever stops the rest
            job.finish(print_json=args.json)
    return 1 if report.failures else 0


def _kind_of(predictor: Predictor, out: Output, args: argparse.Namespace) -> Boxes | Regions | Segments:
    if predictor.task == "semantic":
        return Regions(out, args.opacity)
    if predictor.task == "panoptic":
        return Segments(out, args.opacity)
    return Boxes(out, args.opacity, args.score_thr)


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


class _Job:
    """Runs a predictor over sources and saves what it finds."""

    def __init__(self, predictor: Predictor, kind: Boxes | Regions | Segments, out: Output, report: _Report) -> None:
        self.predictor, self.kind, self.out, self.report = predictor, kind, out, report
        self._ids: set[int] = set()
        self._done = 0

    def pictures(self, sources: Sequence[Source]) -> None:
        """Predict for pictures. Those that cannot be read are reported, the rest is done."""
        self.kind.collect(self._drawn(sources))

    def _drawn(self, sources: Sequence[Source]) -> Iterator[Picture]:
        for batch in _batches(self._readable(sources), self.predictor.batch_size):
            start = time.perf_counter()
            results = self.predictor([image for _, image in batch])
            seconds = (time.perf_counter() - start) / len(batch)
            for (source, image), found in zip(batch, results):
                yield self._draw(source.path, image, found, seconds)

    def _readable(self, sources: Sequence[Source]) -> Iterator[tuple[Source, np.ndarray]]:
        from mmvit.data.images import read_image

        for source in sources:
            try:
                yield source, read_image(source.path)
            except UserError as error:
                self.report.failure(error)

    def _draw(self, path: Path, image: np.ndarray, found: Any, seconds: float) -> Picture:
        drawn = self.out.path(path.stem, ".jpg")
        self.out.write(drawn, _jpeg(self.kind.draw(image, found)))
        beside = self.kind.beside(path, found)
        places = ", ".join([str(drawn), *beside.values()])
        self.report.line(f"{path}: {self.kind.summary(found)}, {1000 * seconds:.0f} ms -> {places}")
        self._done += 1
        return Picture(path, self._image_id(path), found, beside)

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
        """Say where the pictures and their json are."""
        if not self._done:
            return
        pictures = f"{self._done} picture{'s' if self._done > 1 else ''} drawn in {self.out.folder}"
        self.report.line(f"{pictures}, {self.kind.listed()} in {self.out.listing}")
        if print_json and self.out.listing.is_file():  # else writing it has failed
            print(self.out.listing.read_text(encoding="utf-8"))


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
