"""What the predict command does with each kind of result: files, json, and a few words for the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmvit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from mmvit.inference.results import Detections, PanopticSegmentation, Segmentation

_VIDEO_ROWS = 3  # of a legend


class Output:
    """File names in the output folder: none twice, none that is an input."""

    def __init__(self, folder: Path, inputs: Sequence[Path]) -> None:
        self.folder, self.listing = folder, folder / "predictions.json"
        self._taken = {path.resolve() for path in inputs}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the output folder {folder} ({error.strerror}): choose another with --out") from error

    def path(self, stem: str, suffix: str, within: str = "") -> Path:
        """A new name for a file, in the folder or in the one of name `within` in it."""
        number = 1
        while True:
            path = self.folder / within / f"{stem}{f'_{number}' if number > 1 else ''}{suffix}"
            if path.resolve() not in self._taken:
                self._taken.add(path.resolve())
                return path
            number += 1

    def write(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            raise _unwritable(path, error) from error

    def write_json(self, path: Path, value: Any) -> None:
        self.write(path, json.dumps(value, indent=1).encode())


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path} ({error.strerror}): free space, or choose another folder with --out")


class Picture(NamedTuple):
    """A picture that is done. `beside`: the files that belong to it, by the keys that the json has for them."""

    path: Path
    image_id: int
    found: Any
    beside: dict[str, str]


class _Listed:
    """Results of which the json holds a list of dicts. `count`: their number."""

    def __init__(self, out: Output, opacity: float) -> None:
        self.out, self.opacity, self.count = out, opacity, 0

    def collect(self, pictures: Iterable[Picture]) -> None:
        """Write the json of all pictures as they come; also when one of them raises, of those before it."""
        results: list[dict[str, Any]] = []
        done = False
        try:
            for path, image_id, found, beside in pictures:
                done = True
                results += [{**one, "file_name": str(path), **beside} for one in self.to_json(found, image_id)]
        finally:
            self.count = len(results)
            if done:
                self.out.write_json(self.out.listing, results)

    def to_json(self, found: Any, image_id: int) -> list[dict[str, Any]]:
        """What the list holds of one picture."""
        raise NotImplementedError


class Boxes(_Listed):
    """What the command does with `Detections`. `score_thr`: the least score of those."""

    def __init__(self, out: Output, opacity: float, score_thr: float) -> None:
        super().__init__(out, opacity)
        self.score_thr = score_thr

    def draw(self, image: np.ndarray, found: Detections, in_video: bool = False) -> np.ndarray:
        """uint8 (H, W, 3) with boxes or masks."""
        from mmvit.inference.draw import draw_detections

        return draw_detections(image, found, opacity=self.opacity)

    def beside(self, path: Path, found: Detections) -> dict[str, str]:
        """Nothing is written beside the drawn picture."""
        return {}

    def to_json(self, found: Detections, image_id: int) -> list[dict[str, Any]]:
        """COCO results."""
        return found.to_coco(image_id)

    def frame_json(self, found: Detections, number: int) -> dict[str, Any]:
        """What the listing of a video holds of one frame."""
        return {"detections": found.to_coco(number)}

    def listed(self) -> str:
        """What the json of all pictures holds, for the report."""
        return f"{self.count} detections"

    def summary(self, found: Detections) -> str:
        """A few words for the report."""
        if not len(found):
            return f"no objects with a score of {self.score_thr:g} or more"
        return _counted(found.names, "object")


class Regions(_Listed):
    """What the command does with a `Segmentation`."""

    def draw(self, image: np.ndarray, found: Segmentation, in_video: bool = False) -> np.ndarray:
        """uint8 (h, w, 3) with colours and a legend; of one size for all frames of a video."""
        from mmvit.inference.draw import draw_segmentation

        return draw_segmentation(image, found, self.opacity, _VIDEO_ROWS if in_video else None)

    def beside(self, path: Path, found: Segmentation) -> dict[str, str]:
        """Write the PNG of class numbers of picture `path`; its name for the json."""
        index = self.out.path(f"{path.stem}_index", ".png")
        self.out.write(index, found.index_png())
        return {"index_file": str(index)}

    def to_json(self, found: Segmentation, image_id: int) -> list[dict[str, Any]]:
        """Its classes with their pixels."""
        return [{"image_id": image_id, **found.to_dict()}]

    def frame_json(self, found: Segmentation, number: int) -> dict[str, Any]:
        """What the listing of a video holds of one frame."""
        return {"classes": found.to_dict()["classes"]}

    def listed(self) -> str:
        """What the json of all pictures holds, for the report."""
        return "their classes with pixel counts"

    def summary(self, found: Segmentation) -> str:
        """A few words for the report."""
        from mmvit.inference.draw import percent

        shares = list(found.shares().items())
        listed = ", ".join(f"{name} {percent(share)}" for name, share in shares[:4])
        return f"{len(shares)} class{'es' if len(shares) > 1 else ''} ({listed}{', ...' if len(shares) > 4 else ''})"


class Segments:
    """What the command does with a `PanopticSegmentation`: a COCO panoptic json and, in a folder named like it, its PNGs."""

    def __init__(self, out: Output, opacity: float) -> None:
        self.out, self.opacity = out, opacity

    def draw(self, image: np.ndarray, found: PanopticSegmentation, in_video: bool = False) -> np.ndarray:
        """uint8 (h, w, 3) with colours, names and a legend; of one size for all frames of a video."""
        from mmvit.inference.draw import draw_panoptic

        return draw_panoptic(image, found, self.opacity, _VIDEO_ROWS if in_video else None)

    def beside(self, path: Path, found: PanopticSegmentation) -> dict[str, str]:
        """The name of the PNG, which `collect` writes."""
        return {"png": str(self.out.path(path.stem, ".png", self.out.listing.stem))}

    def collect(self, pictures: Iterable[Picture]) -> None:
        """Write PNGs as pictures come, then the json; also when a picture raises, of those before it."""
        from mmvit.evaluation import write_panoptic

        coming = _UntilError(pictures)
        first = next(coming, None)
        if first is not None:
            folder, listing = self.out.listing.with_suffix(""), self.out.listing
            try:
                write_panoptic(folder, listing, map(_entry, chain([first], coming)), first.found.categories())
            except OSError as error:
                raise _unwritable(folder, error) from error
        if coming.error is not None:
            raise coming.error

    def frame_json(self, found: PanopticSegmentation, number: int) -> dict[str, Any]:
        """What the listing of a video holds of one frame."""
        return {"segments": found.to_dict()["segments"]}

    def listed(self) -> str:
        """What the json of all pictures holds, for the report."""
        return f"panoptic maps in {self.out.listing.with_suffix('')}, their segments"

    def summary(self, found: PanopticSegmentation) -> str:
        """A few words for the report."""
        objects = [segment.name for segment in found.segments if segment.isthing]
        regions = [segment.name for segment in found.segments if not segment.isthing]
        parts = [_counted(objects, "object")] if objects else []
        if regions:
            listed = ", ".join(regions[:4]) + (", ..." if len(regions) > 4 else "")
            parts.append(f"{len(regions)} region{'s' if len(regions) > 1 else ''} ({listed})")
        return ", ".join(parts) or "no segments"


def _entry(picture: Picture) -> dict[str, Any]:
    return {**picture.found.to_coco(picture.image_id, str(picture.path)), "png_name": Path(picture.beside["png"]).name}


def _counted(names: Sequence[str], what: str) -> str:
    """``3 objects (2 person, 1 car)``."""
    counts = Counter(names)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common(4))
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({listed}{', ...' if len(counts) > 4 else ''})"


class _UntilError(Iterator[Picture]):
    """The items of an iterable up to the one that raises; `error`: what it raised."""

    def __init__(self, items: Iterable[Picture]) -> None:
        self._items, self.error = iter(items), None

    def __next__(self) -> Picture:
        try:
            return next(self._items)
        except StopIteration:
            raise
        except BaseException as error:  # Ctrl-C, too
            self.error = error
            raise StopIteration from None
