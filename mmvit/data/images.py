"""Reading picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmvit.errors import UserError


def read_rgb(path: str | Path) -> np.ndarray:
    """The picture at `path` as uint8 (H, W, 3) RGB, in the orientation in which its pixels are stored.

    The EXIF rotation is not applied: the boxes of COCO, and of the tools that write COCO files, refer to the stored pixels, and
    the official training code reads them so. Grey, palette, CMYK and 16-bit pictures are converted; alpha is dropped.

    Raises:
        UserError: the file is missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such picture. Check the image folder and the 'file_name' entries of the annotation file"
        ) from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: not a picture in a format that Pillow reads. Replace the file or remove it from the annotations"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: the picture cannot be read ({error}). Copy or download the file again, or remove it from the annotations"
        ) from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))
