"""Semantic masks: what the values of a mask file mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmvit.errors import UserError, did_you_mean

Colour = tuple[int, int, int]

IGNORE = 255  # the value of pixels without a class in every loaded mask

#: What the values of a mask file can mean.
MASK_FORMATS = {
    "index": "value k is class k (from 0); 255 is no class",
    "reduce_zero": "0 is no class, value k is class k - 1 (as in ADE20K)",
    "binary": "two classes: black is the first, white (255) the second",
    "rgb": "a colour for each class, given in the names file as 'name r g b'",
}
_BAD = 254  # in tables of formats whose number of classes is at most 254


class MaskReader:
    """Reads mask files as class maps: uint8 (H, W) with the classes 0..num_classes-1 and 255 for pixels without a class.

    Args:
        num_classes: of the data set, at most 254.
        mask_format: a key of `MASK_FORMATS`.
        ignore_index: value of the files that means "no class", beside 255 ("index", "reduce_zero") and in place of it
            ("binary", where 255 is a class).
        palette: RGB colours of the classes, for "rgb".
        ignore_colours: further RGB colours that mean "no class", for "rgb".

    Raises:
        UserError: arguments that do not fit together.
    """

    def __init__(
        self,
        num_classes: int,
        mask_format: str = "index",
        ignore_index: int = IGNORE,
        palette: Sequence[Sequence[int]] = (),
        ignore_colours: Sequence[Sequence[int]] = (),
    ) -> None:
        check_mask_format(mask_format)
        if not 1 <= num_classes <= 254:
            raise UserError(f"semantic masks of 8 bits hold 1 to 254 classes, got {num_classes}")
        if type(ignore_index) is not int or not 0 <= ignore_index <= 65535:
            raise UserError(f"ignore_index must be a value of the masks, 0 to 65535, got {ignore_index!r}")
        if mask_format == "binary" and num_classes != 2:
            raise UserError(
                f"masks of the format 'binary' hold two classes, but the data has {num_classes} names: name the background "
                "and the object, in this order"
            )
        self.num_classes = num_classes
        self.mask_format = mask_format
        self.ignore_index = ignore_index
        self.palette = _colours(palette)
        self.ignore_colours = _colours(ignore_colours)
        if mask_format == "rgb":
            self._check_colours()
        self._table = None if mask_format == "rgb" else self._value_table()
        self._colour_table: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_colour_table": None}  # 16 MiB, made where it is needed

    @property
    def meaning(self) -> tuple:
        """All that determines how values are read."""
        return self.mask_format, self.num_classes, self.ignore_index, self.palette, self.ignore_colours

    def label(self, value: int | Colour) -> int | None:
        """The class of a value or a colour, 255 for "no class", None where it means nothing."""
        label = int(self.labels(np.array([[value]], dtype=np.int32))[0, 0])
        return None if label == _BAD else label

    def __call__(self, path: str | Path) -> np.ndarray:
        """The class map of a file. UserError when it cannot be read or holds a value that means nothing."""
        values = read_mask(path, self.mask_format == "rgb")
        labels = self.labels(values)
        wrong = labels == _BAD
        if wrong.any():
            shown = ", ".join(map(str, np.unique(values[wrong].reshape(-1, *values.shape[2:]), axis=0)[:5].tolist()))
            raise UserError(
                f"{path}: {int(wrong.sum())} pixels hold values that are no class: {shown} ({self.num_classes} classes, masks "
                f"read as {self.mask_format!r}: {MASK_FORMATS[self.mask_format]}). Choose --mask-format or --ignore-index to "
                "fit the files, or correct them"
            )
        return labels

    def labels(self, values: np.ndarray) -> np.ndarray:
        """The class map, uint8 (H, W), of what `read_mask` gives; 254 where a value means nothing."""
        if self.mask_format == "rgb":
            if values.ndim == 2:
                values = np.broadcast_to(values[..., None], (*values.shape, 3))
            codes = values[..., 0].astype(np.int32) << 16 | values[..., 1].astype(np.int32) << 8 | values[..., 2]
            return self._colours_to_labels[codes]
        if values.ndim == 3:
            return np.full(values.shape[:2], _BAD, dtype=np.uint8)
        if values.dtype == np.uint8:
            return cv2.LUT(values, self._table[:256])
        return self._table[np.minimum(values, len(self._table) - 1)]

    @property
    def _colours_to_labels(self) -> np.ndarray:
        if self._colour_table is None:
            self._colour_table = np.full(1 << 24, _BAD, dtype=np.uint8)
            for red, green, blue in self.ignore_colours:
                self._colour_table[red << 16 | green << 8 | blue] = IGNORE
            for label, (red, green, blue) in enumerate(self.palette):
                self._colour_table[red << 16 | green << 8 | blue] = label
        return self._colour_table

    def _value_table(self) -> np.ndarray:
        """The class of every value, uint8; the last entry is for all higher values."""
        table = np.full(max(256, self.ignore_index + 1) + 1, _BAD, dtype=np.uint8)
        if self.mask_format == "binary":
            table[:128], table[128:256] = 0, 1
            if self.ignore_index != IGNORE:
                table[self.ignore_index] = IGNORE
            return table
        if self.mask_format == "index":
            table[: self.num_classes] = np.arange(self.num_classes)
        else:
            table[1 : self.num_classes + 1] = np.arange(self.num_classes)
            table[0] = IGNORE
        table[[IGNORE, self.ignore_index]] = IGNORE
        return table

    def _check_colours(self) -> None:
        if len(self.palette) != self.num_classes:
            raise UserError(
                f"masks of the format 'rgb' need a colour for each of the {self.num_classes} classes, got "
                f"{len(self.palette)}: write 'name r g b' in every line of the names file"
            )
        every = [*self.palette, *self.ignore_colours]
        for colour in every:
            if every.count(colour) > 1:
                raise UserError(f"the colour {colour} stands for two classes: give each class its own")


def check_mask_format(name: str) -> str:
    """`name`; UserError if it is no key of `MASK_FORMATS`."""
    if name not in MASK_FORMATS:
        raise UserError(
            f"unknown mask format {name!r}.{did_you_mean(name, MASK_FORMATS)} Choose from "
            + "; ".join(f"{key}: {meaning}" for key, meaning in MASK_FORMATS.items())
        )
    return name


def read_mask(path: str | Path, colours: bool = False) -> np.ndarray:
    """The values in a mask file.

    Args:
        path: PNG or any other picture. A palette picture gives its indices, unless colours are asked for; a grey picture
            stored as RGB gives its grey values; bits give 0 and 1; an alpha channel is left out.
        colours: RGB is wanted.

    Returns:
        uint8 or, for 16 or 32 bits, int32 (H, W); uint8 (H, W, 3) when the file is in colour.

    Raises:
        UserError: missing, empty, truncated or foreign file; names it.
    """
    try:
        with Image.open(path) as image:
            return _values(image, colours)
    except FileNotFoundError:
        raise UserError(f"mask {path} does not exist: check the path") from None
    except UnidentifiedImageError:
        raise UserError(f"mask {path} is empty or not a picture ({Path(path).stat().st_size} bytes): write it again") from None
    except Exception as error:  # decoders fail in every way there is
        raise UserError(f"mask {path} is damaged or truncated ({error or type(error).__name__}): write it again") from error


def _values(image: Image.Image, colours: bool) -> np.ndarray:
    if image.mode in ("L", "1") or (image.mode == "P" and not colours):
        return np.asarray(image, dtype=np.uint8)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.int32)
    if image.mode == "LA":
        return np.asarray(image)[..., 0]
    if image.mode == "F":
        raise ValueError("floating-point values; masks hold whole numbers")
    rgb = np.asarray(image.convert("RGB"))
    grey = np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 0], rgb[..., 2])
    return rgb[..., 0] if grey and not colours else rgb


def _colours(colours: Sequence[Sequence[int]]) -> tuple[Colour, ...]:
    """RGB colours as tuples; UserError when one is none."""
    for colour in colours:
        if len(colour) != 3 or not all(0 <= int(part) <= 255 for part in colour):
            raise UserError(f"{colour!r} is no RGB colour: give three numbers from 0 to 255")
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
