"""Looking through all masks of a data set before training starts, so that a wrong value does not stop it hours later."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmvit.data.files import for_each
from mmvit.data.masks import IGNORE, MASK_FORMATS, MaskReader, read_mask
from mmvit.data.semantic import SemanticDataset
from mmvit.errors import UserError
from mmvit.weights import cache_dir

_VERSION = 1  # raise it when the check becomes stricter: data that passed are then looked through again
_SHOWN_FILES, _SHOWN_VALUES = 3, 12
_MOST_COLOURS = 1000  # kept of one mask: of a photograph there are many thousands
_NEARLY_BINARY = 0.9  # share of almost black (to 15) and almost white pixels (from 240) of blurred black and white masks


@dataclass
class _Scan:
    """What one mask holds. ``values``: pixels of every value, an integer or an RGB colour."""

    path: str
    values: dict = field(default_factory=dict)
    unreadable: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    picture_size: tuple[int, int] = (0, 0)

    @property
    def coloured(self) -> bool:
        return any(isinstance(value, tuple) for value in self.values)


def check_masks(*datasets: SemanticDataset, progress: bool = True) -> None:
    """Opens every mask of the data sets and checks its values and its size against the picture's (read from the header).

    Data that passed are not looked through again as long as names, sizes and times of the files and the meaning of the masks
    stay the same; this is recorded in the cache folder (``$MMVIT_CACHE``). Some 300 masks of 512x683 pixels a second on one
    core.

    Raises:
        UserError: values that are no class, 0/255 masks read as class numbers, RGB masks, unreadable files, sizes that differ
            from the picture's. One message for the whole data set, with all values found and the option that helps.
    """
    readers = {dataset.reader.meaning: dataset.reader for dataset in datasets}
    for meaning, reader in readers.items():
        pairs = dict.fromkeys(
            (dataset.mask_path(index), dataset.image_path(index))
            for dataset in datasets
            if dataset.reader.meaning == meaning
            for index in range(len(dataset))
        )
        passed = cache_dir() / "checked_masks" / _digest(reader, pairs)
        if passed.exists():
            continue
        scans = list(for_each(functools.partial(_scan, reader), pairs, "looking through the masks", progress))
        place = " and ".join(dict.fromkeys(dataset.mask_dir for dataset in datasets))
        if problems := _problems(scans, reader):
            raise UserError(f"{place}: the masks cannot be used as they are.\n" + "\n".join(problems))
        with contextlib.suppress(OSError):  # a read-only cache: looked through again the next time
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.write_text(f"{len(pairs)} masks of {place} passed\n")


def _digest(reader: MaskReader, pairs: Iterable[tuple[str, str]]) -> str:
    """Identifies the files' state and the meaning of their values."""
    digest = hashlib.sha256(repr((_VERSION, reader.meaning)).encode())
    for pair in pairs:
        for path in pair:
            stat = os.stat(path)
            digest.update(f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _scan(reader: MaskReader, pair: tuple[str, str]) -> _Scan:
    mask_path, image_path = pair
    scan = _Scan(mask_path)
    try:
        values = read_mask(mask_path, reader.mask_format == "rgb")
    except UserError as error:
        scan.unreadable = str(error)
        return scan
    scan.size = values.shape[1::-1]
    scan.values = _count(values)
    try:
        with Image.open(image_path) as picture:
            scan.picture_size = picture.size
    except Exception as error:  # decoders fail in every way there is
        scan.unreadable = f"picture {image_path} cannot be read ({error or type(error).__name__}): get it again"
    return scan


def _count(values: np.ndarray) -> dict:
    """Pixels of every value."""
    if values.ndim == 3:
        codes = values[..., 0].astype(np.int32) << 16 | values[..., 1].astype(np.int32) << 8 | values[..., 2]
        colours, counts = np.unique(codes, return_counts=True)
        commonest = np.argsort(-counts, kind="stable")[:_MOST_COLOURS]
        colours, counts = colours[commonest], counts[commonest]
        return {(c >> 16, c >> 8 & 255, c & 255): n for c, n in zip(colours.tolist(), counts.tolist())}
    if values.dtype == np.uint8:
        counts = cv2.calcHist([values], [0], None, [256], [0, 256]).ravel()
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist()))


# --- what is said ------------------------------------------------------------------------------------------------------------


def _problems(scans: Sequence[_Scan], reader: MaskReader) -> list[str]:
    """A paragraph for each kind of problem, with its remedy."""
    unreadable = [scan for scan in scans if scan.unreadable]
    misfits = [scan for scan in scans if not scan.unreadable and scan.size != scan.picture_size]
    problems = [
        _paragraph("files that cannot be read", "Write them again", unreadable, lambda scan: scan.unreadable),
        _paragraph(
            "masks of another size than their picture",
            "Write the masks at the size of the pictures" + _turned(misfits),
            misfits,
            lambda scan: f"{scan.path}: {_size(scan.size)}, its picture {_size(scan.picture_size)} (width x height)",
        ),
    ]
    readable = [scan for scan in scans if scan.values]
    if problem := _value_problem(readable, reader):
        problems += [problem, *_histogram(readable, reader)]
    return [problem for problem in problems if problem]


def _turned(misfits: Sequence[_Scan]) -> str:
    if not any(scan.size == scan.picture_size[::-1] for scan in misfits):
        return ""
    return (
        ". Width and height are swapped: these were annotated on the EXIF-rotated pictures; store the pictures rotated and "
        "without EXIF"
    )


def _paragraph(what: str, remedy: str, scans: Sequence[_Scan], line: Callable[[_Scan], str] = lambda scan: scan.path) -> str:
    """What is wrong, with how many files, what to do, and the first of the files. Empty when there are none."""
    if not scans:
        return ""
    shown = "".join(f"\n  {line(scan)}" for scan in scans[:_SHOWN_FILES])
    return f"{what} ({len(scans)} {'file' if len(scans) == 1 else 'files'}). {remedy}{shown}" + (
        "\n  ..." if len(scans) > _SHOWN_FILES else ""
    )


def _value_problem(scans: Sequence[_Scan], reader: MaskReader) -> str:
    """What is wrong with the values, which files show it, and the option that helps; empty when nothing is."""
    coloured = [scan for scan in scans if scan.coloured]
    if coloured and reader.mask_format != "rgb":
        return _paragraph(
            "RGB masks",
            "If every colour stands for a class, write 'name red green blue' in each line of the names file and choose "
            "--mask-format rgb; else write masks of one channel with the class numbers",
            coloured,
        )
    pixels = _total(scans)
    wrong = {value for value in pixels if reader.label(value) is None}
    if reader.mask_format in ("index", "reduce_zero") and _looks_binary(pixels, wrong):
        return _binary_problem(scans, wrong)
    if reader.mask_format == "binary" and pixels and 0 < max(pixels) < 128:
        return _paragraph(
            f"masks without white: they are read as 'binary' ({MASK_FORMATS['binary']}), but no value is above {max(pixels)}",
            "Choose --mask-format index if they hold the class numbers 0 and 1",
            scans,
        )
    offending = [scan for scan in scans if wrong & set(scan.values)]
    return _paragraph(
        f"values that are no class: masks read as {reader.mask_format!r} ({MASK_FORMATS[reader.mask_format]}), "
        f"{reader.num_classes} classes",
        _remedy(pixels, wrong, reader) + _jpeg(offending) if wrong else "",
        offending,
        lambda scan: f"{scan.path}: {_some(sorted(wrong & set(scan.values), key=_order))}",
    )


def _looks_binary(pixels: Counter, wrong: set) -> bool:
    """Whether the masks are black and white, also when JPEG or resizing blurred them."""
    if set(pixels) <= {0, 255}:
        return 255 in pixels
    extremes = sum(count for value, count in pixels.items() if value <= 15 or 240 <= value <= 255)
    return bool(wrong) and 200 <= max(wrong) < 255 and extremes >= _NEARLY_BINARY * pixels.total()


def _binary_problem(scans: Sequence[_Scan], wrong: set) -> str:
    """Masks of black and white, where 255 would mean "no class"; with `wrong` values where edges are blurred."""
    option = "For two classes, background and object, choose --mask-format binary"
    if not wrong:
        return _paragraph("black and white (0/255) masks", option, [scan for scan in scans if 255 in scan.values])
    blurred = [scan for scan in scans if wrong & set(scan.values)]
    return _paragraph(
        "black and white (0/255) masks with blurred edges",
        f"{option}, which takes values from 128 on as white{_jpeg(blurred)}",
        blurred,
    )


def _remedy(pixels: Counter, wrong: set, reader: MaskReader) -> str:
    count = reader.num_classes
    if reader.mask_format == "rgb":
        if not any(isinstance(value, tuple) and len(set(value)) > 1 for value in pixels):
            return "The masks are grey: choose --mask-format index if they hold class numbers"
        return (
            "Add the colours to the names file: 'name red green blue' for a class, 'ignore red green blue' for pixels without "
            "a class"
        )
    advice = []
    if reader.mask_format == "index" and wrong == {count}:
        advice.append("if 0 means 'no class' and the first class is 1, choose --mask-format reduce_zero")
    if len(wrong) == 1:
        advice.append(f"if {min(wrong)} means 'no class', choose --ignore-index {min(wrong)}")
    needed = max(wrong) + (1 if reader.mask_format == "index" else 0)
    if needed <= 254:
        advice.append(f"if these are classes, the names file must have {needed} names, not {count}")
    text = "; ".join(advice) or "correct the masks or the number of names"
    return text[0].upper() + text[1:]


def _jpeg(scans: Sequence[_Scan]) -> str:
    lossy = any(Path(scan.path).suffix.lower() in (".jpg", ".jpeg", ".jfif", ".webp") for scan in scans)
    return ". JPEG changes values: write masks as PNG" if lossy else ""


def _total(scans: Iterable[_Scan]) -> Counter:
    total: Counter = Counter()
    for scan in scans:
        total.update(scan.values)
    return total


def _histogram(scans: Sequence[_Scan], reader: MaskReader) -> list[str]:
    """Lines "value  pixels  files  meaning", the values that mean nothing marked; the commonest where there are many."""
    pixels = _total(scans)
    files = Counter(value for scan in scans for value in scan.values)
    chosen = [value for value, _ in pixels.most_common(_SHOWN_VALUES)]
    chosen += [value for value in pixels if value not in chosen and reader.label(value) is None][:_SHOWN_VALUES]
    lines = [f"values of {len(scans)} masks (value: pixels, files, read as):"]
    for value in sorted(chosen, key=str if reader.mask_format == "rgb" else _order):
        label = reader.label(value)
        meaning = "?" if label is None else "no class" if label == IGNORE else f"class {label}"
        lines.append(f"  {_name(value)}: {pixels[value]}, {files[value]}, {meaning}")
    if len(pixels) > len(chosen):
        lines.append(f"  ... ({len(pixels)} values in all)")
    return lines


def _order(value: object) -> tuple:
    return (1, *value) if isinstance(value, tuple) else (0, value)


def _name(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _some(values: Sequence) -> str:
    return ", ".join(_name(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
