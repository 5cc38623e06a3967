"""Pictures of any kind as uint8 RGB arrays."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmvit.errors import UserError

ImageLike = Union[str, "os.PathLike[str]", bytes, np.ndarray, Image.Image]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", ".avif")

_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\x00", b"MM\x00*")


def read_image(source: ImageLike, upright: bool = True) -> np.ndarray:
    """Read a picture as RGB.

    Args:
        source: path, bytes of a file, PIL image, or array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16,
            bool, or floats from 0 to 1.
        upright: apply the EXIF orientation. Training and evaluation do not: the boxes of COCO, and of the tools that write
            COCO files, refer to the stored pixels, and the official training code reads them so.

    Returns:
        uint8 (H, W, 3). Sixteen bits are scaled to eight (v / 257, rounded). What is transparent is laid onto white. Of an
        animation it is the first frame.

    Raises:
        UserError: missing, empty, truncated or foreign file, or an array of another kind; names the file.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "the array")
    if isinstance(source, Image.Image):
        return _from_pil(source, "the picture", upright)
    if isinstance(source, bytes):
        return _decode(source, "the bytes", upright)
    if isinstance(source, (str, os.PathLike)):
        return _decode(_read_bytes(Path(source)), str(source), upright)
    raise UserError(f"cannot read a picture from {type(source).__name__}: give a path, bytes, a PIL image or a NumPy array")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"picture {path} does not exist: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a picture in it") from None
    except OSError as error:
        raise UserError(f"cannot read picture {path}: {error.strerror}") from error


def _decode(data: bytes, name: str, upright: bool) -> np.ndarray:
    if not data:
        raise UserError(f"picture {name} is empty (0 bytes): get it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; large but permitted sizes
            with Image.open(io.BytesIO(data)) as image:
                return _from_pil(image, name, upright, data)
    except UnidentifiedImageError:
        if data.startswith(_TIFF):  # kinds of TIFF that PIL does not know, such as RGB in floats
            return _decode_deep(data, name)
        raise UserError(
            f"{name} is not a picture in a known format (it starts with {data[:8]!r}): remove or convert it"
        ) from None
    except Image.DecompressionBombError as error:
        raise UserError(f"picture {name} is too large ({str(error).split(' could')[0]}): scale it down first") from error
    except UserError:
        raise
    except Exception as error:  # bytes from anywhere: decoders fail in every way there is
        raise UserError(f"picture {name} is damaged or truncated ({error or type(error).__name__}): get it again") from error


def _load(image: Image.Image) -> None:
    """Decode now, and never make up the missing part of a truncated file, whatever other libraries have set."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _from_pil(image: Image.Image, name: str, upright: bool, data: bytes = b"") -> np.ndarray:
    _load(image)
    orientation = image.getexif().get(0x0112, 1) if upright else 1
    if _png_depth(data) == 16 and image.mode in ("RGB", "RGBA", "LA"):  # PIL would cut these to 8 bits without rounding
        return _oriented(_decode_deep(data, name), orientation)
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_array(_sixteen_bit(image, name), name)
    if image.mode == "F":
        return _from_array(np.asarray(image), name)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _png_depth(data: bytes) -> int:
    """Bits per channel by the header of a PNG; 0 for other formats."""
    return data[24] if data.startswith(_PNG) and len(data) > 24 else 0


def _sixteen_bit(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"picture {name} has values from {values.min()} to {values.max()}: convert it to 8 or 16 bits")
    return values.astype(np.uint16)


def _decode_deep(data: bytes, name: str) -> np.ndarray:
    """Colour with 16 bits or floats per channel. OpenCV keeps the depth, but neither the orientation nor RGB order."""
    import cv2

    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise UserError(f"picture {name} is damaged or of an unknown kind: convert it to PNG or JPEG")
    if values.ndim == 3 and values.shape[2] >= 3:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return _from_array(values, name)


def _oriented(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1..8) to (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _from_array(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise UserError(f"{name} has shape {values.shape}: expected (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, none of them 0")
    values = _eight_bit(values, name)
    if values.shape[2] == 4:
        alpha = values[..., 3:].astype(np.float32) / 255
        values = np.rint(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.array(np.broadcast_to(values, (*values.shape[:2], 3)))


def _eight_bit(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{name} has dtype {values.dtype}: convert it to uint8, uint16, or floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise UserError(f"{name} has floats from {low:g} to {high:g}: expected 0 to 1; scale them, or convert to uint8")
    return np.rint(values * 255).astype(np.uint8)
