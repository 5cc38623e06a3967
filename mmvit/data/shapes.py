"""The synthetic "shapes" data: pictures with things and stuff whose every pixel is known, made anywhere in seconds.

Eight thing classes, told apart by geometry: circle, triangle, square, star, cross, ring, bar, moon. Each has a preferred
hue (an eighth of the colour circle apart, jittered; one object in seven, or the share that is asked for, takes any hue), so
that a small network learns fast and yet must look at the form to be right always. Four stuff classes tile the background:
sky above a horizon, grass, sand or water below it. One picture in twelve has a grey strip that belongs to no class (void),
and some hold a crowd: a huddle of small things annotated as one region.

Later objects cover earlier ones; none is placed where it would leave another with under a quarter of its area visible.
Picture i of a split depends on (seed, split, i) and the settings of a picture only, so that asking for more pictures does
not change the first ones.

Layouts (argument `layouts`), all of the same pictures:
  coco        {train,val}/*.jpg, annotations/instances_{train,val}.json: boxes, RLE masks and areas of the visible part
  panoptic    annotations/panoptic_{train,val}.json, annotations/panoptic_{train,val}/*.png; id = R + 256 G + 65536 B, 0 = void
  ade20k      ade20k/images/{training,validation}/*.jpg, ade20k/annotations/{training,validation}/*.png; 0 = void, 1..12;
              the names in ade20k/classes.txt
  cityscapes  cityscapes/leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and
              cityscapes/gtFine/{train,val}/<city>/*_gtFine_{labelIds,labelTrainIds,instanceIds}.png; every class takes the
              ids of a Cityscapes class (`CITYSCAPES_IDS`), so that cityscapesscripts reads them unchanged
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_tools

from mmvit.data.classes import make_palette
from mmvit.data.files import draft_folder
from mmvit.errors import UserError, did_you_mean

THINGS = ("circle", "triangle", "square", "star", "cross", "ring", "bar", "moon")
STUFF = ("sky", "grass", "sand", "water")
CLASSES = THINGS + STUFF  # category id = position + 1
LAYOUTS = ("coco", "panoptic", "ade20k", "cityscapes")

#: class -> (Cityscapes label id, train id). The things take the ids of the eight Cityscapes classes with instances.
CITYSCAPES_IDS = {
    "circle": (24, 11),
    "triangle": (25, 12),
    "square": (26, 13),
    "star": (27, 14),
    "cross": (28, 15),
    "ring": (31, 16),
    "bar": (32, 17),
    "moon": (33, 18),
    "sky": (23, 10),
    "grass": (21, 8),
    "sand": (22, 9),
    "water": (7, 0),
}

_VERSION = 1  # raise it when a change alters the pictures: folders of the old version are then written anew
_MANIFEST = "shapes.json"
_SPLITS = ("train", "val")
_LEAST_VISIBLE = 0.25
ODD_COLOURS = 1 / 7
SEGMENTED_ODD_COLOURS = 1 / 20  # of the data made for segmentation, where small networks decide pixel by pixel


@dataclass
class Thing:
    """An object, or a crowd of objects, in a scene."""

    label: int  # index into CLASSES
    mask: np.ndarray  # bool (H, W), the visible part
    full_area: int  # pixels before others covered it
    crowd: bool = False


@dataclass
class Scene:
    """A picture and everything that is known about it."""

    image: np.ndarray  # uint8 (H, W, 3) RGB
    stuff: np.ndarray  # uint8 (H, W): index into CLASSES, 255 = void; under the things too
    things: list[Thing] = field(default_factory=list)
    odd_colours: float = 0.0  # share of things that take any hue


# --- one picture -------------------------------------------------------------------------------------------------------------


def make_scene(
    seed: int, split: str, index: int, size: int = 160, crowds: float = 0.04, odd_colours: float = ODD_COLOURS
) -> Scene:
    """Picture `index` of `split`. `size`: typical side in pixels (sides vary from 0.75 to 1.25 of it). `crowds`: share of
    pictures with one. `odd_colours`: share of objects whose hue is not their class's, but any.
    """
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    height, width = (max(32, int(round(size * factor))) for factor in rng.uniform(0.75, 1.25, 2))
    scene = _background(rng, height, width)
    scene.odd_colours = odd_colours
    for _ in range(rng.integers(1, 9)):
        _place_thing(rng, scene)
    if rng.random() < crowds:
        _place_crowd(rng, scene)
    noise = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    scene.image = np.clip(scene.image + noise, 0, 255).astype(np.uint8)
    return scene


def _background(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Sky above a wavy horizon; one or two kinds of ground below it; at times a void strip."""
    x = np.arange(width)
    horizon = height * rng.uniform(0.2, 0.6) + _wave(rng, x, 0.04 * height)
    below = np.arange(height)[:, None] >= horizon[None]
    first, second = rng.permutation(3)[:2] + len(THINGS) + 1
    border = width * rng.uniform(-0.3, 1.3) + _wave(rng, np.arange(height), 0.06 * width)
    ground = np.where(x[None] < border[:, None], first, second)
    stuff = np.where(below, ground, len(THINGS)).astype(np.uint8)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for label in np.unique(stuff):
        image[stuff == label] = _texture(rng, CLASSES[label], height, width)[stuff == label]
    if rng.random() < 1 / 12:
        strip = _strip(rng, height, width)
        stuff[strip] = 255
        image[strip] = rng.integers(90, 150)
    return Scene(image, stuff)


def _wave(rng: np.random.Generator, positions: np.ndarray, amplitude: float) -> np.ndarray:
    period = len(positions) / rng.uniform(0.5, 2.5)
    return amplitude * np.sin(2 * np.pi * (positions / period + rng.random()))


def _strip(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A band along one side of the picture, bool (height, width)."""
    strip = np.zeros((height, width), dtype=bool)
    share = rng.uniform(0.04, 0.12)
    rows, columns = max(1, int(share * height)), max(1, int(share * width))
    everything = slice(None)
    sides = [
        (slice(rows), everything),
        (slice(-rows, None), everything),
        (everything, slice(columns)),
        (everything, slice(-columns, None)),
    ]
    strip[sides[rng.integers(4)]] = True
    return strip


def _texture(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """A picture full of one kind of stuff, uint8 (height, width, 3). Duller than the things."""
    base = {"sky": (150, 180, 215), "grass": (95, 130, 80), "sand": (195, 178, 138), "water": (75, 115, 140)}[
        name
    ] + rng.normal(0, 8, 3)
    rows = np.linspace(0, 1, height)[:, None]
    if name == "sky":
        shade = 30 * rows + 14 * _cloud(rng, height, width, 4)
    elif name == "grass":
        shade = 12 * _cloud(rng, height, width, 10) + rng.normal(0, 14, (height, width))
    elif name == "sand":
        shade = 8 * _cloud(rng, height, width, 6) + rng.normal(0, 5, (height, width))
    else:
        shade = 14 * np.sin(2 * np.pi * (rows * rng.uniform(8, 14) + 0.15 * _cloud(rng, height, width, 5)))
    return np.clip(base + shade[..., None], 0, 255).astype(np.uint8)


def _cloud(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise of unit variance at its grid points, float32 (height, width)."""
    return cv2.resize(rng.standard_normal((cells, cells)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _place_thing(rng: np.random.Generator, scene: Scene) -> None:
    """Adds an object where it and those below it stay visible; gives up after a few tries."""
    height, width = scene.stuff.shape
    label = int(rng.integers(len(THINGS)))
    for _ in range(8):
        radius = 0.5 * min(height, width) * np.exp(rng.uniform(np.log(0.14), np.log(1.0)))
        centre = rng.random(2) * (width, height)
        outline, hole = outlines(THINGS[label], rng)
        mask = _fill(outline * radius + centre, None if hole is None else hole * radius + centre, height, width)
        # What lies beyond the picture does not count as visible either.
        whole = _fill(
            outline * radius + 2 * radius, None if hole is None else hole * radius + 2 * radius, *[int(4 * radius) + 2] * 2
        )
        if mask.sum() >= max(12, 0.6 * whole.sum()) and _leaves_visible(scene, mask):
            _paint(rng, scene, label, mask)
            scene.things.append(Thing(label, mask, int(mask.sum())))
            return


def _place_crowd(rng: np.random.Generator, scene: Scene) -> None:
    """Adds a huddle of 6 to 12 small objects of one class, as one crowd region."""
    height, width = scene.stuff.shape
    label, radius = int(rng.integers(len(THINGS))), 0.045 * min(height, width)
    centre = rng.uniform(0.2, 0.8, 2) * (width, height)
    masks = []
    for offset in rng.normal(0, 2.2 * radius, (rng.integers(6, 13), 2)):
        outline, hole = outlines(THINGS[label], rng)
        at = centre + offset
        masks.append(_fill(outline * radius + at, None if hole is None else hole * radius + at, height, width))
    masks = [mask for mask in masks if mask.any()]
    if not masks:
        return
    union = np.any(masks, axis=0)
    if union.sum() >= 12 and _leaves_visible(scene, union):
        _cover(scene, union)
        for mask in masks:
            _paint(rng, scene, label, mask, cover=False)
        scene.things.append(Thing(label, union, int(union.sum()), crowd=True))


def outlines(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """The outline (n, 2) of a thing around the origin, within radius 1, slightly turned, and the outline of its hole (ring)
    or None.
    """
    turn = rng.uniform(-0.35, 0.35)
    hole = None
    if name in ("circle", "ring"):
        ellipse = _polar(np.linspace(0, 2 * np.pi, 40, endpoint=False)) * (1, rng.uniform(0.85, 1))
        hole = ellipse * rng.uniform(0.5, 0.65) if name == "ring" else None
        points = ellipse
    elif name == "triangle":
        points = _polar(np.deg2rad([-90, 30, 150]))
    elif name == "square":
        points = _polar(np.deg2rad([-45, 45, 135, 225]))
    elif name == "star":
        points = _polar(np.deg2rad(-90 + 36 * np.arange(10))) * np.tile([1, rng.uniform(0.38, 0.48)], 5)[:, None]
    elif name == "cross":
        arm, long = rng.uniform(0.22, 0.3), 0.95
        quarter = np.array([[arm, -long], [arm, -arm], [long, -arm]])
        points = np.concatenate([_rotate(quarter, k * np.pi / 2) for k in range(4)])
    elif name == "bar":
        half = rng.uniform(0.2, 0.28)
        points = np.array([[-0.96, -half], [0.96, -half], [0.96, half], [-0.96, half]])
        turn += np.pi / 2 * rng.integers(2)
    else:  # moon: a disc less a shifted disc
        angle = np.deg2rad(np.linspace(50, 310, 30))
        outer, inner = _polar(angle), _polar(angle[::-1]) * (0.55, 1)
        points = np.concatenate([outer, inner[1:-1] + (_polar(angle[:1])[0, 0] * 0.45, 0)])
        turn += np.pi * rng.integers(2)
    return _rotate(points, turn), None if hole is None else _rotate(hole, turn)


def _polar(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _fill(outline: np.ndarray, hole: np.ndarray | None, height: int, width: int) -> np.ndarray:
    """The pixels inside an outline given in pixels, bool (height, width)."""
    canvas = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(canvas, [np.rint(outline * 16 - 8).astype(np.int32)], 1, shift=4)
    if hole is not None:
        cv2.fillPoly(canvas, [np.rint(hole * 16 - 8).astype(np.int32)], 0, shift=4)
    return canvas.astype(bool)


def _leaves_visible(scene: Scene, mask: np.ndarray) -> bool:
    return all((thing.mask & ~mask).sum() >= max(8, _LEAST_VISIBLE * thing.full_area) for thing in scene.things)


def _cover(scene: Scene, mask: np.ndarray) -> None:
    for thing in scene.things:
        thing.mask &= ~mask


def _paint(rng: np.random.Generator, scene: Scene, label: int, mask: np.ndarray, cover: bool = True) -> None:
    """Draws an object: a shaded colour near its class's hue, with a dark rim."""
    if cover:
        _cover(scene, mask)
    hue = rng.random() if rng.random() < scene.odd_colours else (label / len(THINGS) + rng.normal(0, 0.03)) % 1
    colour = np.array([[[hue * 360, rng.uniform(0.6, 1), rng.uniform(0.6, 1)]]], dtype=np.float32)
    colour = cv2.cvtColor(colour, cv2.COLOR_HSV2RGB)[0, 0] * 255
    rows, columns = np.nonzero(mask)
    direction = rng.normal(0, 1, 2)
    light = (rows - rows.mean()) * direction[0] + (columns - columns.mean()) * direction[1]
    light = 1 + 0.12 * light / max(1e-6, np.abs(light).max())
    rim = ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)[rows, columns]
    light = np.where(rim & (len(rows) > 60), 0.6 * light, light)
    scene.image[rows, columns] = np.clip(colour * light[:, None], 0, 255)


# --- files -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapesSettings:
    """What determines the files of a shapes folder. `train`, `val`: numbers of pictures; the rest as in `make_scene` and
    `LAYOUTS`.
    """

    train: int = 800
    val: int = 200
    seed: int = 0
    size: int = 160
    layouts: tuple[str, ...] = ("coco",)
    crowds: float = 0.04
    odd_colours: float = ODD_COLOURS

    def __post_init__(self) -> None:
        layouts = (self.layouts,) if isinstance(self.layouts, str) else self.layouts
        for name in layouts:
            if name not in LAYOUTS:
                raise UserError(
                    f"shapes: unknown layout {name!r}.{did_you_mean(name, LAYOUTS)} Choose from {', '.join(LAYOUTS)}"
                )
        object.__setattr__(self, "layouts", tuple(name for name in LAYOUTS if name in layouts))
        for name, least in {"train": 1, "val": 1, "seed": 0, "size": 32}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"shapes: {name} must be a whole number of at least {least}, got {value!r}")
        if not self.layouts or not 0 <= self.crowds <= 1 or not 0 <= self.odd_colours <= 1:
            raise UserError(
                f"shapes: needs at least one layout, and crowds and odd_colours in 0..1, got layouts {layouts!r}, "
                f"crowds {self.crowds!r}, odd_colours {self.odd_colours!r}"
            )

    def digest(self) -> str:
        text = json.dumps({**asdict(self), "version": _VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def ensure_shapes(root: str | Path, **settings: object) -> Path:
    """The shapes folder `root`, written if it is not there or was written with other `settings` (see `ShapesSettings`).

    The folder appears whole or not at all, and several processes may ask for it at once.

    Raises:
        UserError: `root` exists and holds something else.
    """
    chosen = _settings(settings)
    root = Path(root)
    if _manifest_digest(root) == chosen.digest():
        return root
    return write_shapes(root, **settings)


def write_shapes(root: str | Path, **settings: object) -> Path:
    """Writes the shapes folder `root`, in place of an older shapes folder; see `ShapesSettings` for the `settings`.

    800 + 200 pictures of 160 pixels with layout "coco" take some ten seconds on one core.
    """
    chosen = _settings(settings)
    root = Path(root)
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and _manifest_digest(root) is None)):
        raise UserError(f"{root}: exists and is not a shapes folder; it would be overwritten. Choose another folder")
    with draft_folder(root) as draft:
        _write_files(draft, chosen)
        _publish(draft, root, chosen.digest())
    return root


def _settings(settings: dict) -> ShapesSettings:
    known = ShapesSettings.__dataclass_fields__
    for name in settings:
        if name not in known:
            raise UserError(f"shapes: unknown setting {name!r}.{did_you_mean(name, known)} Choose from {', '.join(known)}")
    return ShapesSettings(**settings)


def _manifest_digest(root: Path) -> str | None:
    """The digest of the settings that the folder was written with; None if it is no shapes folder."""
    try:
        return json.loads((root / _MANIFEST).read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(draft: Path, root: Path, digest: str) -> None:
    """Moves the finished `draft` to `root`. If another process has just put the same data there, that stays."""
    for _ in range(3):
        try:
            os.rename(draft, root)  # replaces an empty folder too
            return
        except OSError:
            if _manifest_digest(root) == digest:
                return
            old = tempfile.mkdtemp(prefix=f".{root.name}-old-", dir=draft.parent)
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
                os.rename(root, Path(old) / "old")
            shutil.rmtree(old, ignore_errors=True)
    raise UserError(f"{root}: cannot be replaced. Remove it and try again")


def _write_files(root: Path, settings: ShapesSettings) -> None:
    for split in _SPLITS:
        writers = [_WRITERS[layout](root, split) for layout in settings.layouts]
        for index in range(getattr(settings, split)):
            scene = make_scene(settings.seed, split, index, settings.size, settings.crowds, settings.odd_colours)
            for writer in writers:
                writer.add(index, scene)
        for writer in writers:
            writer.close()
    manifest = {
        "name": "mmvit shapes",
        "digest": settings.digest(),
        "version": _VERSION,
        "settings": asdict(settings),
        "classes": CLASSES,
    }
    (root / _MANIFEST).write_text(json.dumps(manifest, indent=1))


class _CocoWriter:
    """Pictures and the instances file."""

    file = "instances"

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self.pictures = _folder(root / split)
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def categories(self) -> list[dict]:
        return [category for category in _categories() if category["isthing"]]

    def add(self, index: int, scene: Scene) -> None:
        name = f"{index:06d}.jpg"
        _write_image(self.pictures / name, scene.image)
        height, width = scene.stuff.shape
        self.images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        self.annotate(index + 1, scene)

    def annotate(self, image_id: int, scene: Scene) -> None:
        for thing in scene.things:
            rle = mask_tools.encode(np.asfortranarray(thing.mask, dtype=np.uint8))
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": thing.label + 1,
                    "bbox": _box(thing.mask),
                    "area": int(thing.mask.sum()),
                    "iscrowd": int(thing.crowd),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                }
            )

    def close(self) -> None:
        content = {
            "info": {"description": __doc__.splitlines()[0]},
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories(),
        }
        (_folder(self.root / "annotations") / f"{self.file}_{self.split}.json").write_text(json.dumps(content))


class _PanopticWriter(_CocoWriter):
    """Pictures, the panoptic file and its PNGs."""

    file = "panoptic"

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.maps = _folder(root / "annotations" / f"panoptic_{split}")

    def categories(self) -> list[dict]:
        return _categories()

    def annotate(self, image_id: int, scene: Scene) -> None:
        ids = np.zeros(scene.stuff.shape, dtype=np.int32)
        segments = []
        palette = make_palette(len(CLASSES))
        for number, (label, mask, crowd) in enumerate(_segments(scene)):
            red, green, blue = palette[label]
            identity = (red + 256 * green + 65536 * blue + 37 * number) % (1 << 24)
            ids[mask] = identity
            segments.append(
                {"id": identity, "category_id": label + 1, "bbox": _box(mask), "area": int(mask.sum()), "iscrowd": int(crowd)}
            )
        name = f"{image_id - 1:06d}.png"
        _write_image(self.maps / name, np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8))
        self.annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})


class _AdeWriter:
    """ADE20K's folders: a picture and a map of class numbers, 0 = void."""

    def __init__(self, root: Path, split: str) -> None:
        name = {"train": "training", "val": "validation"}[split]
        self.prefix = {"train": "ADE_train", "val": "ADE_val"}[split]
        self.pictures = _folder(root / "ade20k" / "images" / name)
        self.maps = _folder(root / "ade20k" / "annotations" / name)
        (root / "ade20k" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))

    def add(self, index: int, scene: Scene) -> None:
        name = f"{self.prefix}_{index + 1:08d}"
        _write_image(self.pictures / f"{name}.jpg", scene.image)
        _write_image(self.maps / f"{name}.png", semantic_map(scene) + np.uint8(1))  # 255 wraps to 0

    def close(self) -> None:
        pass


class _CityscapesWriter:
    """Cityscapes' folders, names and ids. instanceIds: label id, or for things 1000 * label id + number, without number for
    a crowd.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.city = {"train": "shapesburg", "val": "formstadt"}[split]
        self.pictures = _folder(root / "cityscapes" / "leftImg8bit" / split / self.city)
        self.maps = _folder(root / "cityscapes" / "gtFine" / split / self.city)
        self.label_ids, self.train_ids = np.zeros(256, dtype=np.uint8), np.full(256, 255, dtype=np.uint8)
        for label, name in enumerate(CLASSES):
            self.label_ids[label], self.train_ids[label] = CITYSCAPES_IDS[name]

    def add(self, index: int, scene: Scene) -> None:
        name = f"{self.city}_{index:06d}_{index % 1000:06d}"
        labels = semantic_map(scene)
        instances = self.label_ids[labels].astype(np.uint16)
        counts: dict[int, int] = {}
        for thing in scene.things:
            if not thing.crowd:
                number = counts[thing.label] = counts.get(thing.label, -1) + 1
                instances[thing.mask] = 1000 * int(self.label_ids[thing.label]) + number
        _write_image(self.pictures / f"{name}_leftImg8bit.png", scene.image)
        _write_image(self.maps / f"{name}_gtFine_labelIds.png", self.label_ids[labels])
        _write_image(self.maps / f"{name}_gtFine_labelTrainIds.png", self.train_ids[labels])
        _write_image(self.maps / f"{name}_gtFine_instanceIds.png", instances)

    def close(self) -> None:
        pass


_WRITERS: dict[str, Callable] = {
    "coco": _CocoWriter,
    "panoptic": _PanopticWriter,
    "ade20k": _AdeWriter,
    "cityscapes": _CityscapesWriter,
}


def semantic_map(scene: Scene) -> np.ndarray:
    """The class of every pixel, uint8 (H, W): index into CLASSES, 255 = void."""
    labels = scene.stuff.copy()
    for thing in scene.things:
        labels[thing.mask] = thing.label
    return labels


def _segments(scene: Scene) -> Iterator[tuple[int, np.ndarray, bool]]:
    """(label, mask, crowd) of every panoptic segment: the things, then what is seen of each kind of stuff."""
    covered = np.zeros(scene.stuff.shape, dtype=bool)
    for thing in scene.things:
        covered |= thing.mask
        yield thing.label, thing.mask, thing.crowd
    for label in np.unique(scene.stuff[~covered]):
        if label != 255:
            yield int(label), (scene.stuff == label) & ~covered, False


def _categories() -> list[dict]:
    palette = make_palette(len(CLASSES))
    return [
        {
            "id": i + 1,
            "name": name,
            "supercategory": "shape" if name in THINGS else "ground",
            "isthing": int(name in THINGS),
            "color": palette[i],
        }
        for i, name in enumerate(CLASSES)
    ]


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width, height of the pixels in a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB, or a one-channel uint8/uint16 map."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    options: Sequence[int] = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if not cv2.imwrite(str(path), pixels, options):
        raise UserError(f"{path}: cannot be written. Check the free space and the permissions")
