"""Semantic segmentation data: a folder of pictures and a folder of masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mmvit.data.base import PictureDataset
from mmvit.data.classes import palette_for
from mmvit.data.images import IMAGE_SUFFIXES
from mmvit.data.masks import IGNORE, MaskReader
from mmvit.errors import UserError
from mmvit.registry import DATASETS


@DATASETS.register_module()
class SemanticDataset(PictureDataset):
    """Pictures with a mask that gives the class of every pixel.

    Both folders are searched with their subfolders. A picture and a mask belong together when their paths below the two
    folders agree up to the suffixes. ``dataset[(index, seed)]`` is the sample of a seed (see `PictureDataset`); pictures are
    in the order of their names. ``img_id`` is the path below `img_dir` without suffix.

    Args:
        img_dir: folder of the pictures.
        mask_dir: folder of the masks.
        classes: names in the order of their numbers.
        palette: RGB colours of the classes. None: see `palette_for`; "rgb" masks need it.
        pipeline: transforms, as config dicts or callables ``sample -> sample``.
        test_mode: data for evaluation.
        img_suffix: how names of pictures end, such as "_leftImg8bit.png". None: any picture suffix.
        mask_suffix: how names of masks end, such as ".png" or "_gtFine_labelTrainIds.png".
        mask_format, ignore_index, ignore_colours: what the values of the masks mean; see `MaskReader`.
        split: text file with one name per line (with or without suffix): only these pictures are used. None: all.

    Raises:
        UserError: a missing or empty folder, a picture without mask or a mask without picture, impossible classes.
    """

    def __init__(
        self,
        img_dir: str | Path,
        mask_dir: str | Path,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        img_suffix: str | None = None,
        mask_suffix: str = ".png",
        mask_format: str = "index",
        ignore_index: int = IGNORE,
        ignore_colours: Sequence[Sequence[int]] = (),
        split: str | Path | None = None,
    ) -> None:
        names = _checked_names(classes)
        self.reader = MaskReader(len(names), mask_format, ignore_index, palette or (), ignore_colours)
        if palette is not None and len(palette) != len(names):
            raise UserError(f"palette has {len(palette)} colours for {len(names)} classes: give one for each")
        colours = [tuple(colour) for colour in palette] if palette is not None else palette_for(names)
        super().__init__(pipeline, {"classes": names, "palette": colours})
        self.img_dir, self.mask_dir = str(img_dir), str(mask_dir)
        self.img_suffix, self.mask_suffix = img_suffix, mask_suffix
        self.test_mode = test_mode
        self._pairs = self._find_pairs(split)

    def __len__(self) -> int:
        return len(self._pairs)

    def image_path(self, index: int) -> str:
        return os.path.join(self.img_dir, self._pairs[index][0])

    def mask_path(self, index: int) -> str:
        """Path of the mask."""
        return os.path.join(self.mask_dir, self._pairs[index][1])

    def _sample(self, index: int) -> dict:
        """Where the picture and the mask lie, and the ``mask_reader`` that reads it."""
        return {
            "img_id": _stem(self._pairs[index][1], self.mask_suffix),
            "img_path": self.image_path(index),
            "mask_path": self.mask_path(index),
            "mask_reader": self.reader,
        }

    def _find_pairs(self, split: str | Path | None) -> tuple[tuple[str, str], ...]:
        """(picture, mask) paths below their folders, sorted."""
        masks = _by_stem(self.mask_dir, (self.mask_suffix,), "masks")
        excluded = self.mask_suffix if self.mask_suffix.lower() not in IMAGE_SUFFIXES else None
        images = _by_stem(self.img_dir, (self.img_suffix,) if self.img_suffix else IMAGE_SUFFIXES, "pictures", excluded)
        if split is not None:
            wanted = _read_split(Path(split), self.img_suffix)
            self._require(wanted, images, "names have no picture", split, self.img_dir, "Correct the list or add the pictures")
            images = {stem: images[stem] for stem in wanted}
            masks = {stem: masks[stem] for stem in wanted if stem in masks}
        self._require(
            images,
            masks,
            "pictures have no mask",
            self.img_dir,
            self.mask_dir,
            "Give every picture a mask of the same name, remove it, or list the pictures to use in a split file",
        )
        self._require(
            masks, images, "masks have no picture", self.mask_dir, self.img_dir, "Add the pictures or remove the masks"
        )
        return tuple((images[stem], masks[stem]) for stem in sorted(images))

    def _require(
        self, stems: Iterable[str], there: dict[str, str], what: str, source: str | Path, place: str, remedy: str
    ) -> None:
        """UserError naming the `stems` that are not `there`."""
        missing = sorted(set(stems) - set(there))
        if not missing:
            return
        suffix = self.mask_suffix if place == self.mask_dir else self.img_suffix or ".*"
        shown = "".join(f"\n  {stem}{suffix}" for stem in missing[:5])
        more = f"\n  ... ({len(missing)} in all)" if len(missing) > 5 else ""
        found = ", ".join(sorted(there.values())[:3])
        raise UserError(
            f"{source}: {len(missing)} of {len(set(stems))} {what} in {place}, expected:{shown}{more}\n"
            f"(found there: {found}, ...). {remedy}"
        )


def _checked_names(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise UserError(f"classes must be a list of names, got the single text {classes!r}. Write [{classes!r}]")
    names = tuple(classes)
    for name in names:
        if not isinstance(name, str) or not name:
            raise UserError(f"class name {name!r} is not a text. Give every class a name")
        if names.count(name) > 1:
            raise UserError(f"classes holds {name!r} twice. Name every class once")
    return names


def _by_stem(folder: str, suffixes: Sequence[str], kind: str, excluded: str | None = None) -> dict[str, str]:
    """Path below `folder` of every file with one of the suffixes, under its path without suffix."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder of {kind}. Correct the path or put the {kind} there")
    found: dict[str, str] = {}
    for name in list_files(folder):
        suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix.lower())), None)
        if suffix is None or (excluded and name.endswith(excluded)):
            continue
        stem = _stem(name, suffix)
        if stem in found:
            raise UserError(f"{folder}: {found[stem]} and {name} have the same name without suffix. Remove or rename one")
        found[stem] = name
    if not found:
        raise UserError(f"{folder}: holds no {kind} that end in {' or '.join(suffixes)}. Correct the path or the suffix")
    return found


def _stem(name: str, suffix: str) -> str:
    return name[: -len(suffix)]


def list_files(folder: str | Path) -> list[str]:
    """Paths below `folder`, with "/", of the files in it and its subfolders, without hidden ones; sorted."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(place, folder).replace(os.sep, "/")
        found += [name if prefix == "." else f"{prefix}/{name}" for name in files if not name.startswith(".")]
    return sorted(found)


def _read_split(path: Path, img_suffix: str | None) -> list[str]:
    """The names without suffix in a split file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such split file. Give a text file with one picture name per line") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a text file ({error}). Write one picture name per line") from None
    suffixes = (img_suffix,) if img_suffix else IMAGE_SUFFIXES
    names = [next((_stem(line, s) for s in suffixes if line.lower().endswith(s.lower())), line) for line in lines if line]
    if not names:
        raise UserError(f"{path}: the split file is empty. Write one picture name per line")
    return list(dict.fromkeys(names))
