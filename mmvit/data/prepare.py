"""Public data sets, from what can be downloaded to what training reads: found or fetched, verified, unpacked, converted.

    python tools/prepare_dataset.py ade20k                              # downloads, to data/ade20k
    python tools/prepare_dataset.py cityscapes --from ~/downloads       # needs a login: uses the archives you have
    python tools/prepare_dataset.py coco --from /datasets/coco          # or the folders they were unpacked to
    python tools/prepare_dataset.py ade20k --panoptic                   # panoptic and instance annotations too
    python tools/prepare_dataset.py semantic --panoptic-json panoptic_val2017.json --panoptic-dir panoptic_val2017 \\
        --images val2017 --out data/coco_semantic                       # semantic masks of a COCO panoptic file

A second run checks that everything is still there and does nothing. An interrupted run is continued by the next.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmvit.data.archives import merge_into, unpack
from mmvit.data.files import link_or_copy, map_processes
from mmvit.data.folder import inventory
from mmvit.data.panoptic import semantic_from_panoptic
from mmvit.data.prepare_panoptic import prepare_ade20k, prepare_cityscapes
from mmvit.data.semantic import SemanticDataset, list_files
from mmvit.data.semantic_folder import find_semantic
from mmvit.errors import UserError, did_you_mean
from mmvit.weights import fetch, lock, sha256

MANIFEST = "manifest.json"
_VERSION = 1  # raise it when data prepared by an older version have to be prepared anew
_ARCHIVES, _UNPACKING = "archives", ".unpacking"  # below the data set's folder
_INLINE = 64  # conversions that are not worth the start of other processes


@dataclass(frozen=True)
class Part:
    """Files of a data set: those below ``folder`` with one of the endings (of several, that which most files have), ``count``
    in number in the whole data set.

    ``optional``: may be missing altogether.
    """

    folder: str
    suffixes: tuple[str, ...]
    count: int
    optional: bool = False

    def names(self, root: Path) -> list[str]:
        """The files' paths below the folder."""
        folder = root / self.folder
        files = list_files(folder) if folder.is_dir() else []
        return max(([name for name in files if name.endswith(suffix)] for suffix in self.suffixes), key=len)


@dataclass(frozen=True)
class Archive:
    """A zip or tar file that can be downloaded, and the parts it holds. ``nested``: archives within, unpacked too."""

    name: str
    url: str  # of the file, or of a page where to log in
    parts: tuple[Part, ...]
    nested: tuple[str, ...] = ()
    login: bool = False

    @property
    def tops(self) -> tuple[str, ...]:
        """The outermost folders of its parts."""
        return tuple(dict.fromkeys(part.folder.partition("/")[0] for part in self.parts))


@dataclass
class Manifest:
    """What a prepared folder holds and where it came from; ``manifest.json`` in it."""

    name: str
    version: int = _VERSION
    complete: bool = False
    subset: bool = False
    archives: dict[str, dict] = field(default_factory=dict)  # by name: size and sha256, or the tree that was used
    parts: list[dict] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path, name: str) -> Manifest:
        """That of the folder; a new one where there is none of this name and version."""
        try:
            found = cls(**json.loads((root / MANIFEST).read_text()))
        except (OSError, ValueError, TypeError):
            return cls(name)
        return found if (found.name, found.version) == (name, _VERSION) else cls(name)

    def write(self, root: Path) -> None:
        draft = root / f".{MANIFEST}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(draft, root / MANIFEST)


def _semantic_parts(
    folders: Sequence[str], suffixes: tuple[str, ...], splits: dict[str, int], optional: Sequence[str] = ()
) -> tuple[Part, ...]:
    return tuple(Part(f"{f}/{s}", suffixes, count, s in optional) for f in folders for s, count in splits.items())


_ADE = {"training": 20210, "validation": 2000}
_CITY = {"train": 2975, "val": 500, "test": 1525}
_CITY_PAGE = "https://www.cityscapes-dataset.com/downloads/ (needs a login)"
_COCO_SITE = "http://images.cocodataset.org"

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "ade20k": (
        Archive(
            "ADEChallengeData2016.zip",
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            _semantic_parts(["images"], (".jpg",), _ADE) + _semantic_parts(["annotations"], (".png",), _ADE),
        ),
    ),
    "cityscapes": (
        Archive(
            "leftImg8bit_trainvaltest.zip",
            _CITY_PAGE,
            _semantic_parts(["leftImg8bit"], ("_leftImg8bit.png",), _CITY, ["test"]),
            login=True,
        ),
        Archive(
            "gtFine_trainvaltest.zip",
            _CITY_PAGE,
            _semantic_parts(["gtFine"], ("_gtFine_polygons.json", "_gtFine_labelTrainIds.png"), _CITY, ["test"]),
            login=True,
        ),
    ),
    "coco": (
        Archive("train2017.zip", f"{_COCO_SITE}/zips/train2017.zip", (Part("train2017", (".jpg",), 118287),)),
        Archive("val2017.zip", f"{_COCO_SITE}/zips/val2017.zip", (Part("val2017", (".jpg",), 5000),)),
        Archive(
            "annotations_trainval2017.zip",
            f"{_COCO_SITE}/annotations/annotations_trainval2017.zip",
            tuple(Part("annotations", (f"instances_{split}2017.json",), 1) for split in ("train", "val")),
        ),
    ),
}
PANOPTIC = Archive(
    "panoptic_annotations_trainval2017.zip",
    f"{_COCO_SITE}/annotations/panoptic_annotations_trainval2017.zip",
    (
        *(Part("annotations", (f"panoptic_{split}2017.json",), 1) for split in ("train", "val")),
        Part("annotations/panoptic_train2017", (".png",), 118287),
        Part("annotations/panoptic_val2017", (".png",), 5000),
    ),
    nested=("annotations/panoptic_train2017.zip", "annotations/panoptic_val2017.zip"),
)
INSTANCES = Archive(
    "annotations_instance.tar",
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar",
    _semantic_parts(["annotations_instance"], (".png",), _ADE),
)
#: What is made from them: name -> parts.
MADE: dict[str, tuple[Part, ...]] = {
    "ade20k": (
        Part("ade20k_panoptic_train", (".png",), _ADE["training"]),
        Part("ade20k_panoptic_val", (".png",), _ADE["validation"]),
        *(Part(".", (f"ade20k_{kind}_{split}.json",), 1) for kind in ("panoptic", "instance") for split in ("train", "val")),
    ),
    "cityscapes": (
        Part("gtFine/cityscapes_panoptic_train_trainId", ("_panoptic.png",), _CITY["train"]),
        Part("gtFine/cityscapes_panoptic_val_trainId", ("_panoptic.png",), _CITY["val"]),
        *(
            Part("gtFine", (name,), 1)
            for split in ("train", "val")
            for name in (f"cityscapes_panoptic_{split}_trainId.json", f"instances_{split}.json")
        ),
    ),
    "coco": (),
}


def prepare(
    name: str,
    out: str | Path | None = None,
    source: str | Path | None = None,
    subset: bool = False,
    panoptic: bool = False,
    keep_archives: bool = False,
    progress: bool = True,
) -> bool:
    """Makes the folder `out` hold the data set `name` as training reads it.

    Args:
        name: "ade20k", "cityscapes" or "coco".
        out: folder to fill. None: ``data/<name>``. What is already there is used.
        source: folder with the archives, or with what was unpacked from them, whose files are then linked. None: download.
        subset: the data are a partial copy on purpose: the number of files is not checked.
        panoptic: the panoptic and instance annotations too.
        keep_archives: do not delete downloaded archives after unpacking (they are in ``<out>/archives``).

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: a missing, truncated or damaged archive, an incomplete folder, a full disk; says where to get what.
    """
    if name not in ARCHIVES:
        raise UserError(f"unknown data set {name!r}.{did_you_mean(name, ARCHIVES)} Choose from {', '.join(ARCHIVES)}")
    out = Path(out) if out else Path("data") / name
    job = _Job(name, out, source and _existing(Path(source)), subset, panoptic, keep_archives, progress)
    extra = {"coco": (PANOPTIC,), "ade20k": (INSTANCES,)}.get(name, ()) if panoptic else ()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock(out / ".prepare", f"waiting for another process that prepares {out}"):
            return job.run((*ARCHIVES[name], *extra))
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise UserError(f"cannot write to {out} ({reason}): free space, make the folder writable, or choose --out") from error


def _existing(source: Path) -> Path:
    if source.is_file():
        return source.parent
    if not source.is_dir():
        raise UserError(f"{source}: no such folder. Give the folder that holds the archives, or what was unpacked from them")
    return source


class _Job:
    """One run of `prepare`; see there for the arguments."""

    def __init__(
        self, name: str, out: Path, source: Path | None, subset: bool, panoptic: bool, keep_archives: bool, progress: bool
    ) -> None:
        self.name, self.out, self.source = name, out, source
        self.subset, self.panoptic, self.keep_archives, self.progress = subset, panoptic, keep_archives, progress

    def _parts(self, archives: Sequence[Archive]) -> list[Part]:
        """All that the folder is to hold."""
        return [part for archive in archives for part in archive.parts] + list(MADE[self.name] if self.panoptic else ())

    def run(self, archives: Sequence[Archive]) -> bool:
        manifest = Manifest.read(self.out, self.name)
        if self._is_ready(manifest, archives):
            return False
        manifest.complete, manifest.subset = False, self.subset
        for archive in archives:
            if not self._is_installed(archive, manifest):
                manifest.archives[archive.name] = self._install(archive)
                manifest.write(self.out)
        if self.name == "cityscapes":
            convert_cityscapes(self.out, self.progress)
        if self.name != "coco":
            self._check_pairs()
        if self.panoptic and self.name != "coco":
            {"ade20k": prepare_ade20k, "cityscapes": prepare_cityscapes}[self.name](self.out, self.progress)
        manifest.parts = [_facts(self.out, part) for part in self._parts(archives)]
        manifest.complete = True
        manifest.write(self.out)
        return True

    def _is_ready(self, manifest: Manifest, archives: Sequence[Archive]) -> bool:
        """Whether everything is as an earlier run left it, and that run was asked for no less."""
        return (
            manifest.complete
            and manifest.subset <= self.subset
            and all(_facts(self.out, part) in manifest.parts for part in self._parts(archives))
            and (self.name != "cityscapes" or not any(_unconverted(self.out)))
        )

    def _is_installed(self, archive: Archive, manifest: Manifest) -> bool:
        """Whether all that the archive holds is in place; notes in the manifest what was there without our doing."""
        if archive.name not in manifest.archives and self.subset and self.source not in (None, self.out):
            return False  # what is there may be part of what the user wants
        recorded = {(part["folder"], part["suffix"]): part["files"] for part in manifest.parts} if self.subset else {}
        fewer = any(len(part.names(self.out)) < recorded.get((part.folder, part.suffixes[0]), 0) for part in archive.parts)
        if fewer or self._faults(archive, self.out):
            return False
        manifest.archives.setdefault(archive.name, {"tree": str(self.out)})
        return True

    def _faults(self, archive: Archive, root: Path) -> list[str]:
        """What is wrong with the number of files of an archive below `root`."""
        faults = []
        for part in archive.parts:
            count = len(part.names(root))
            if count != part.count and not (count == 0 and part.optional) and not (self.subset and count):
                faults.append(f"{root / part.folder} holds {count} files *{part.suffixes[0]}, expected {part.count}")
        return faults

    def _install(self, archive: Archive) -> dict:
        """Gets the archive and puts its content into place. Returns where it came from."""
        draft = self.out / _UNPACKING / archive.name
        if self.source is None:
            facts = self._download(archive, draft)
        else:
            facts = self._take(archive, draft)
        if faults := self._faults(archive, draft):
            shutil.rmtree(draft)
            raise UserError(self._incomplete(archive, faults))
        merge_into(draft, self.out)
        if "url" in facts and not self.keep_archives:
            for path in (self.out / _ARCHIVES).glob(f"{archive.name}*"):  # with its record of the SHA-256 and its lock
                path.unlink()
        for folder in (_UNPACKING, _ARCHIVES):
            with contextlib.suppress(OSError):  # not empty, or not there
                (self.out / folder).rmdir()
        return facts

    def _download(self, archive: Archive, draft: Path) -> dict:
        if archive.login:
            raise UserError(
                f"{self.name} cannot be downloaded without a login: get {archive.name} from {archive.url}, then run again with "
                "--from and the folder that holds it"
            )
        path = fetch(archive.url, self.out / _ARCHIVES / archive.name, self.progress)
        return {**self._unpack(archive, path, draft), "url": archive.url}

    def _take(self, archive: Archive, draft: Path) -> dict:
        """From the user's folder: a complete tree is linked, else the zip file is unpacked."""
        tree, path = self._find_tree(archive), self._find_zip(archive)
        faults = self._faults(archive, tree) if tree else []
        if tree and not faults and tree.resolve() != self.out.resolve():
            for top in archive.tops:
                for name in list_files(tree / top):
                    (draft / top / name).parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(tree / top / name, draft / top / name)
            return {"tree": str(tree)}
        if path:
            return self._unpack(archive, path, draft)
        if faults:
            raise UserError(self._incomplete(archive, faults))
        raise UserError(
            f"{self.source}: holds neither {archive.name} nor what is in it ({', '.join(p.folder for p in archive.parts)}); "
            f"{inventory(self.source)}. Get {archive.name} from {archive.url}"
        )

    def _incomplete(self, archive: Archive, faults: Sequence[str]) -> str:
        return (
            f"{'; '.join(faults)}: the data of {archive.name} are incomplete. Get it again from {archive.url}; for a partial "
            "copy on purpose add --subset"
        )

    def _unpack(self, archive: Archive, path: Path, draft: Path) -> dict:
        unpack(path, draft, archive.tops, archive.url, self.progress)
        for name in archive.nested:
            nested = draft / name
            if not nested.is_file():
                raise UserError(f"{path}: holds no {name}. Get it again from {archive.url}")
            unpack(nested, nested.parent, (nested.stem,), archive.url, self.progress)
            nested.unlink()
        return {"file": str(path), "size": path.stat().st_size, "sha256": sha256(path)}

    def _find_zip(self, archive: Archive) -> Path | None:
        return next((base / archive.name for base in self._bases() if (base / archive.name).is_file()), None)

    def _find_tree(self, archive: Archive) -> Path | None:
        needed = [part for part in archive.parts if not part.optional]
        for base in self._bases():
            if all((base / part.folder).is_dir() for part in needed) and all(part.names(base) for part in needed):
                return base
        return None

    def _bases(self) -> Iterator[Path]:
        """The user's folder and its subfolders to a depth of two, without the one to fill."""
        yield self.source
        for depth in ("*", "*/*"):
            for path in sorted(self.source.glob(depth)):
                hidden = any(part.startswith(".") for part in path.relative_to(self.source).parts)
                if path.is_dir() and not hidden and self.out.resolve() not in (path.resolve(), *path.resolve().parents):
                    yield path

    def _check_pairs(self) -> None:
        """Every picture has its mask."""
        files = find_semantic(self.out)
        for split in ("train", "val"):
            SemanticDataset(**files.dataset_args(split))


def _facts(root: Path, part: Part) -> dict:
    """Number, size and a digest of names and sizes of a part's files."""
    sizes = [(name, os.stat(root / part.folder / name).st_size) for name in part.names(root)]
    return {
        "folder": part.folder,
        "suffix": part.suffixes[0],
        "files": len(sizes),
        "bytes": sum(size for _, size in sizes),
        "digest": hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in sizes).encode()).hexdigest(),
    }


# --- Cityscapes --------------------------------------------------------------------------------------------------------------


def convert_cityscapes(root: Path, progress: bool = True) -> None:
    """Writes ``*_gtFine_labelTrainIds.png`` beside every ``*_gtFine_polygons.json`` under ``root/gtFine`` that lacks it.

    Raises:
        UserError: cityscapesscripts is not installed, or a polygon file is damaged.
    """
    todo = list(_unconverted(root))
    if not todo:
        return
    try:
        import cityscapesscripts.preparation.json2labelImg  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"converting Cityscapes needs cityscapesscripts ({error}): `pip install cityscapesscripts`, then run again"
        ) from None
    for _ in map_processes(_convert_polygons, todo, "converting to train ids", progress, _INLINE):
        pass


def _unconverted(root: Path) -> Iterator[Path]:
    folder = root / "gtFine"
    names = set(list_files(folder)) if folder.is_dir() else set()
    for name in sorted(names):
        if name.endswith("_gtFine_polygons.json") and name.replace("_polygons.json", "_labelTrainIds.png") not in names:
            yield folder / name


def _convert_polygons(path: Path) -> None:
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    target = path.with_name(path.name.replace("_polygons.json", "_labelTrainIds.png"))
    draft = target.with_name(f".{target.name}")
    try:
        json2labelImg(str(path), str(draft), "trainIds")
    except (Exception, SystemExit) as error:  # the script exits on a label that it does not know
        draft.unlink(missing_ok=True)
        raise UserError(f"{path}: the polygons cannot be drawn ({error or type(error).__name__}). Get the file again") from None
    os.replace(draft, target)


# --- command -----------------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mmvit prepare`` and ``tools/prepare_dataset.py``."""
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="{ade20k,cityscapes,coco,semantic}")
    helps = {
        "ade20k": "ADE20K scene parsing, 150 classes (0.9 GiB)",
        "cityscapes": "Cityscapes fine annotations, 19 classes (11 GiB, needs a login)",
        "coco": "COCO 2017 detection (19 GiB)",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--from",
            dest="source",
            type=Path,
            metavar="DIR",
            help="folder with the archives, or with what was unpacked from them",
        )
        command.add_argument("--out", type=Path, default=Path("data") / name, help=f"folder to fill (default: data/{name})")
        command.add_argument(
            "--subset", action="store_true", help="a partial copy on purpose: do not check the number of files"
        )
        if name != "cityscapes":
            command.add_argument(
                "--keep-archives", action="store_true", help="do not delete downloaded archives after unpacking"
            )
        command.add_argument("--panoptic", action="store_true", help="the panoptic and instance annotations too")
    text = "semantic masks of a COCO panoptic file"
    command = commands.add_parser("semantic", help=text, description=text)
    command.add_argument("--panoptic-json", type=Path, required=True, help="such as annotations/panoptic_val2017.json")
    command.add_argument("--panoptic-dir", type=Path, required=True, help="folder of its PNGs")
    command.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    command.add_argument("--out", type=Path, required=True, help="folder to write, for --data")


def run(args: argparse.Namespace) -> int:
    """Prepares a public data set for training: downloads or takes what you have, verifies, unpacks, converts."""
    if args.dataset == "semantic":
        classes = semantic_from_panoptic(args.panoptic_json, args.panoptic_dir, args.images, args.out)
        print(f"{args.out}: {len(list_files(args.out / 'masks'))} masks of {len(classes)} classes, for --data {args.out}")
        return 0
    options = {key: value for key, value in vars(args).items() if key in ("panoptic", "keep_archives")}
    changed = prepare(args.dataset, args.out, args.source, args.subset, **options)
    manifest = Manifest.read(args.out, args.dataset)
    for part in manifest.parts:
        if part["files"]:
            print(f"  {part['folder']}: {part['files']} files *{part['suffix']}, {part['bytes'] / (1 << 20):.0f} MiB")
    print(f"{args.out}: {'prepared' if changed else 'already prepared, nothing to do'}")
    return 0
