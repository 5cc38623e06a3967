"""Preparation of public data sets, on miniature trees of the same layout: archives, trees, faults, second and broken runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import stat
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from test_weights import Server, server  # noqa: F401  (a fixture)

from mmvit.cli import run_command
from mmvit.data import CocoDetection, SemanticDataset, archives, check_masks, find_coco_json, find_semantic, prepare
from mmvit.data.shapes import write_shapes
from mmvit.errors import UserError
from mmvit.weights import download as download_module

ADE_ZIP = "ADEChallengeData2016.zip"
SIZES = {20210: 3, 2000: 2, 2975: 3, 500: 2, 1525: 1, 118287: 3, 5000: 2, 1: 1}  # published number of files -> in these tests


@pytest.fixture(autouse=True)
def miniature(monkeypatch, tmp_path):
    """The published archives with a handful of files."""

    def small(archive):
        return dataclasses.replace(archive, parts=tuple(dataclasses.replace(p, count=SIZES[p.count]) for p in archive.parts))

    monkeypatch.setattr(prepare, "ARCHIVES", {name: tuple(map(small, found)) for name, found in prepare.ARCHIVES.items()})
    monkeypatch.setattr(prepare, "PANOPTIC", small(prepare.PANOPTIC))
    monkeypatch.setattr(download_module, "BACKOFF", 0.0)
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def write_picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), values)


def ade_tree(root: Path) -> Path:
    base = root / "ADEChallengeData2016"
    for split, prefix, count in (("training", "train", 3), ("validation", "val", 2)):
        for index in range(count):
            name = f"ADE_{prefix}_{index + 1:08d}"
            write_picture(base / "images" / split / f"{name}.jpg", np.full((8, 12, 3), 20 * index, np.uint8))
            write_picture(base / "annotations" / split / f"{name}.png", np.full((8, 12), 150 - index, np.uint8))
    (base / "objectInfo150.txt").write_text("names")
    return base


def city_tree(root: Path) -> Path:
    """Pictures and polygons: a road over the whole picture, a car in its corner, and the ego vehicle."""
    for split, city, count in (("train", "aachen", 3), ("val", "lindau", 2), ("test", "berlin", 1)):
        for index in range(count):
            name = f"{city}_{index:06d}_000019"
            write_picture(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", np.zeros((16, 32, 3), np.uint8))
            polygons = [
                ("road", [[0, 0], [31, 0], [31, 15], [0, 15]]),
                ("car", [[0, 0], [7, 0], [7, 7], [0, 7]]),
                ("ego vehicle", [[0, 14], [31, 14], [31, 15], [0, 15]]),
            ]
            content = {
                "imgHeight": 16,
                "imgWidth": 32,
                "objects": [{"label": label, "polygon": polygon} for label, polygon in polygons],
            }
            path = root / "gtFine" / split / city / f"{name}_gtFine_polygons.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
            write_picture(path.with_name(f"{name}_gtFine_labelIds.png"), np.zeros((16, 32), np.uint8))
    return root


@pytest.fixture(scope="module")
def coco_shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "all", train=3, val=2, layouts=("coco", "panoptic"))


def coco_tree(root: Path, shapes: Path) -> Path:
    for split in ("train", "val"):
        shutil.copytree(shapes / split, root / f"{split}2017")
        for kind in ("instances", "panoptic"):
            target = root / "annotations" / f"{kind}_{split}2017.json"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(shapes / "annotations" / f"{kind}_{split}.json", target)
        shutil.copytree(shapes / "annotations" / f"panoptic_{split}", root / "annotations" / f"panoptic_{split}2017")
    return root


def make_zip(path: Path, base: Path, folders: list[str], top: str = "") -> Path:
    """A zip file of folders and files below `base`, with directory entries and a Mac's extras."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for folder in folders:
            place = base / folder
            for item in [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]:
                target.write(item, top + str(item.relative_to(base)))
        target.writestr(f"__MACOSX/{top}._x.png", b"junk")
    return path


def ade_zip(folder: Path) -> Path:
    base = ade_tree(folder / "source")
    return make_zip(folder / "have" / ADE_ZIP, base.parent, [base.name])


def run(*words: object) -> int:
    return run_command(prepare.add_arguments, prepare.run, "prepare", [str(word) for word in words])


def files_of(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file, without the lock."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def left_over(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".") and path.suffix != ".lock"]


# --- the real counts ---------------------------------------------------------------------------------------------------------


def test_published_archives_are_described_completely(monkeypatch):
    monkeypatch.undo()
    counts = {
        f"{name}/{part.folder}": part.count for name, found in prepare.ARCHIVES.items() for a in found for part in a.parts
    }
    assert counts["ade20k/images/training"] == counts["ade20k/annotations/training"] == 20210
    assert counts["cityscapes/gtFine/train"] == 2975 and counts["cityscapes/leftImg8bit/test"] == 1525
    assert counts["coco/train2017"] == 118287 and counts["coco/val2017"] == 5000 and len(counts) == 13
    for name, found in prepare.ARCHIVES.items():
        for archive in (*found, prepare.PANOPTIC):
            assert archive.name.endswith(".zip") and (archive.login or archive.url.endswith(f"/{archive.name}")), name


# --- ADE20K ------------------------------------------------------------------------------------------------------------------


def test_ade20k_from_the_archive(tmp_path, capsys):
    source, out = ade_zip(tmp_path), tmp_path / "data" / "ade20k"
    assert run("ade20k", "--from", source.parent, "--out", out) == 0
    assert f"{out}: prepared" in capsys.readouterr().out and source.is_file()
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".lock") == ["annotations", "images", "manifest.json"]
    files = find_semantic("ade20k", data_root=tmp_path / "data")
    data = [SemanticDataset(**files.dataset_args(split)) for split in ("train", "val")]
    assert [len(d) for d in data] == [3, 2] and len(files.classes) == 150 and files.mask_format == "reduce_zero"
    assert set(data[0].reader(data[0].mask_path(1)).ravel().tolist()) == {148}
    check_masks(*data)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and not manifest["subset"] and manifest["name"] == "ade20k"
    facts = manifest["archives"][ADE_ZIP]
    assert facts["size"] == source.stat().st_size and len(facts["sha256"]) == 64
    assert [(part["folder"], part["files"]) for part in manifest["parts"]] == [
        ("images/training", 3),
        ("images/validation", 2),
        ("annotations/training", 3),
        ("annotations/validation", 2),
    ]
    assert manifest["parts"][0]["bytes"] == sum(p.stat().st_size for p in (out / "images/training").iterdir())


def test_a_second_run_does_nothing(tmp_path, capsys):
    source, out = ade_zip(tmp_path), tmp_path / "ade"
    assert prepare.prepare("ade20k", out, source.parent, progress=False)
    before = files_of(out)
    shutil.rmtree(source.parent)
    source.parent.mkdir()
    assert run("ade20k", "--from", source.parent, "--out", out) == 0
    assert "already prepared, nothing to do" in capsys.readouterr().out and files_of(out) == before
    assert prepare.prepare("ade20k", out) is False  # no download either
    (out / "images/training/ADE_train_00000002.jpg").unlink()
    with pytest.raises(UserError, match=f"holds neither {ADE_ZIP}.*the folder is empty.*Get {ADE_ZIP} from http://data.csail"):
        prepare.prepare("ade20k", out, source.parent)
    ade_tree(tmp_path / "again")
    assert prepare.prepare("ade20k", out, tmp_path / "again", progress=False)
    assert len(list((out / "images/training").iterdir())) == 3 and not left_over(out)


def test_a_tree_is_linked_and_left_alone(tmp_path):
    base, out = ade_tree(tmp_path / "have"), tmp_path / "ade"
    before = files_of(tmp_path / "have")
    assert prepare.prepare("ade20k", out, tmp_path / "have", progress=False)
    name = "images/training/ADE_train_00000001.jpg"
    assert (out / name).samefile(base / name) and not (out / "images").is_symlink()
    assert files_of(tmp_path / "have") == before
    assert json.loads((out / "manifest.json").read_text())["archives"] == {ADE_ZIP: {"tree": str(base)}}
    assert prepare.prepare("ade20k", base, None, progress=False)  # in place, without a download
    assert len(find_semantic(base).classes) == 150 and prepare.prepare("ade20k", base) is False


def test_what_is_missing_or_damaged_is_named(tmp_path):
    source, out = ade_zip(tmp_path), tmp_path / "ade"
    whole = source.read_bytes()

    def complain(**options) -> str:
        with pytest.raises(UserError) as error:
            prepare.prepare("ade20k", out, source.parent, progress=False, **options)
        assert not (out / "images").exists()  # nothing half-made
        return str(error.value)

    source.write_bytes(whole[: len(whole) // 2])
    text = complain()
    assert f"{source}: truncated or not a zip archive ({len(whole) // 2} bytes" in text and "get it again: http://data" in text
    start = whole.index(b"ADEChallengeData2016/annotations/training/ADE_train_00000002.png") + 64
    source.write_bytes(whole[:start] + b"\x00\xff\x07" + whole[start + 3 :])
    text = complain()
    assert "annotations/training/ADE_train_00000002.png is damaged" in text and str(source) in text
    source.write_bytes(b"")
    assert "truncated or not a zip archive (0 bytes" in complain()
    make_zip(source, tmp_path / "source" / "ADEChallengeData2016", ["objectInfo150.txt"])
    assert "holds no folder images or annotations" in complain()
    shutil.rmtree(tmp_path / "source" / "ADEChallengeData2016" / "images" / "validation")
    make_zip(source, tmp_path / "source", ["ADEChallengeData2016"])
    text = complain()
    assert "images/validation holds 0 files *.jpg, expected 2" in text and "add --subset" in text
    source.unlink()
    assert f"holds neither {ADE_ZIP}" in complain()
    with pytest.raises(UserError, match="no such folder"):
        prepare.prepare("ade20k", out, tmp_path / "none")
    with pytest.raises(UserError, match="unknown data set 'ade'.*Did you mean 'ade20k'"):
        prepare.prepare("ade", out)


def test_partial_copies_need_the_option(tmp_path):
    base, out = ade_tree(tmp_path / "have"), tmp_path / "ade"
    for place in ("images/training/ADE_train_00000003.jpg", "annotations/training/ADE_train_00000003.png"):
        (base / place).unlink()
    with pytest.raises(UserError, match=r"images/training holds 2 files \*.jpg, expected 3; .*incomplete.*--subset"):
        prepare.prepare("ade20k", out, base, progress=False)
    assert prepare.prepare("ade20k", out, base, subset=True, progress=False)
    assert (
        json.loads((out / "manifest.json").read_text())["subset"] and prepare.prepare("ade20k", out, base, subset=True) is False
    )
    with pytest.raises(UserError, match="expected 3"):
        prepare.prepare("ade20k", out, base, progress=False)
    (out / "images/training/ADE_train_00000002.jpg").unlink()
    assert prepare.prepare("ade20k", out, base, subset=True, progress=False)
    assert (out / "images/training/ADE_train_00000002.jpg").is_file()
    for tree in (base, out):
        (tree / "images/training/ADE_train_00000002.jpg").unlink()
    with pytest.raises(UserError, match="1 of 2 masks have no picture(.*\n)*.*ADE_train_00000002"):
        prepare.prepare("ade20k", out, base, subset=True, progress=False)


def test_an_interrupted_run_is_continued(tmp_path, monkeypatch):
    source, out = ade_zip(tmp_path), tmp_path / "ade"
    extract, done = archives._extract, []

    def interrupted(opened, member, path, *rest):
        if len(done) == 4:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(member.filename)
        extract(opened, member, path, *rest)

    monkeypatch.setattr(archives, "_extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("ade20k", out, source.parent, progress=False)
    assert not (out / "images").exists() and not (out / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / ".unpacking").rglob("*.*g")}
    assert len(kept) == 5
    monkeypatch.setattr(archives, "_extract", extract)
    assert prepare.prepare("ade20k", out, source.parent, progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    assert sum(after[name] == moment for name, moment in kept.items()) >= 4 and not left_over(out)
    for path in (out / "annotations").rglob("*.png"):
        assert Image.open(path).size == (12, 8)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "images/../../evil.txt", "..\\evil.txt", "C:/evil.txt", "link"])
def test_members_cannot_leave_the_folder(tmp_path, name):
    source = ade_zip(tmp_path)
    with zipfile.ZipFile(source, "a") as target:
        if name == "link":
            info = zipfile.ZipInfo("ADEChallengeData2016/images/link.jpg")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            target.writestr(info, "/etc/passwd")
        else:
            target.writestr(name, b"x")
    with pytest.raises(UserError, match="would be written outside|is a link"):
        prepare.prepare("ade20k", tmp_path / "deep" / "ade", source.parent, progress=False)
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path / "deep" / "ade" / "images").exists()


def test_a_full_disk_is_noticed_before(tmp_path, monkeypatch):
    source = ade_zip(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match="MiB are needed to unpack, 0 MiB are free"):
        prepare.prepare("ade20k", tmp_path / "ade", source.parent, progress=False)


# --- download ----------------------------------------------------------------------------------------------------------------


def serve(server: Server, path: Path, monkeypatch) -> None:  # noqa: F811
    (archive,) = prepare.ARCHIVES["ade20k"]
    server.body = path.read_bytes()
    url = f"http://127.0.0.1:{server.server_address[1]}/places/{ADE_ZIP}"
    monkeypatch.setattr(prepare, "ARCHIVES", {"ade20k": (dataclasses.replace(archive, url=url),)})


def test_download_is_resumed_and_the_archive_deleted(tmp_path, server, monkeypatch):  # noqa: F811
    serve(server, ade_zip(tmp_path), monkeypatch)
    server.cuts, server.cut_after = 1, 1000
    out = tmp_path / "ade"
    assert prepare.prepare("ade20k", out, progress=False)
    assert server.requests == [None, "bytes=1000-"]
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".lock") == ["annotations", "images", "manifest.json"]
    facts = json.loads((out / "manifest.json").read_text())["archives"][ADE_ZIP]
    assert facts["url"].startswith("http://127.0.0.1") and facts["size"] == len(server.body)
    assert prepare.prepare("ade20k", out) is False and len(server.requests) == 2
    (out / "annotations/validation/ADE_val_00000001.png").unlink()
    assert prepare.prepare("ade20k", out, keep_archives=True, progress=False) and len(server.requests) == 3
    assert (out / "archives" / ADE_ZIP).is_file()


def test_a_failed_download_says_where_to_put_the_file(tmp_path, server, monkeypatch):  # noqa: F811
    serve(server, ade_zip(tmp_path), monkeypatch)
    server.status = 404
    out = tmp_path / "ade"
    target = out / "archives" / ADE_ZIP
    with pytest.raises(UserError, match=f"cannot download {ADE_ZIP} .*HTTP 404.*put the file by hand at {target}"):
        prepare.prepare("ade20k", out, progress=False)
    shutil.copy(tmp_path / "have" / ADE_ZIP, target)
    assert prepare.prepare("ade20k", out, progress=False)


# --- Cityscapes --------------------------------------------------------------------------------------------------------------


def expected_train_ids() -> np.ndarray:
    labels = np.zeros((16, 32), np.uint8)
    labels[:8, :8], labels[14:] = 13, 255
    return labels


@pytest.mark.parametrize("form", ["zips", "tree", "two trees", "in place"])
def test_cityscapes_is_converted(tmp_path, form):
    tree, have, out = city_tree(tmp_path / "source"), tmp_path / "have", tmp_path / "city"
    have.mkdir()
    if form == "zips":
        for name, folder in (("leftImg8bit_trainvaltest.zip", "leftImg8bit"), ("gtFine_trainvaltest.zip", "gtFine")):
            make_zip(have / name, tree, [folder])
    elif form == "two trees":
        (have / "a").mkdir(), (have / "b").mkdir()
        os.rename(tree / "gtFine", have / "a" / "gtFine")
        os.rename(tree / "leftImg8bit", have / "b" / "leftImg8bit")
    else:
        have = tree
        out = tree if form == "in place" else out
    assert prepare.prepare("cityscapes", out, have, progress=False)
    files = find_semantic(out)
    data = [SemanticDataset(**files.dataset_args(split)) for split in ("train", "val")]
    assert [len(d) for d in data] == [3, 2] and len(files.classes) == 19
    check_masks(*data)
    for d in data:
        assert np.array_equal(d.reader(d.mask_path(1)), expected_train_ids())
    assert len(list((out / "gtFine/test").rglob("*_labelTrainIds.png"))) == 1
    if form == "tree":
        assert not list(tree.rglob("*_labelTrainIds.png"))  # the user's folder is left alone
    assert prepare.prepare("cityscapes", out, have) is False
    next((out / "gtFine/val").rglob("*_labelTrainIds.png")).unlink()
    assert prepare.prepare("cityscapes", out, have, progress=False)
    assert len(list((out / "gtFine/val").rglob("*_labelTrainIds.png"))) == 2


def test_cityscapes_faults(tmp_path, monkeypatch, capsys):
    tree, out = city_tree(tmp_path / "have"), tmp_path / "city"
    assert run("cityscapes", "--out", out) == 2
    text = capsys.readouterr().err
    assert "without a login: get leftImg8bit_trainvaltest.zip from https://www.cityscapes-dataset.com/downloads/" in text
    assert "--from" in text and "Traceback" not in text
    os.rename(tree / "gtFine", tmp_path / "gtFine")
    with pytest.raises(
        UserError, match=r"neither gtFine_trainvaltest.zip .*found: leftImg8bit/.*cityscapes-dataset.com/downloads"
    ):
        prepare.prepare("cityscapes", out, tree, progress=False)
    os.rename(tmp_path / "gtFine", tree / "gtFine")
    shutil.rmtree(tree / "gtFine" / "test")  # optional
    broken = next((tree / "gtFine" / "val").rglob("*_polygons.json"))
    good = broken.read_text()
    for content in ("{", good.replace('"road"', '"rode"')):
        broken.write_text(content)
        with pytest.raises(UserError, match=f"{broken.name}: the polygons cannot be drawn"):
            prepare.prepare("cityscapes", out, tree, progress=False)
        assert not list(out.rglob(".*_labelTrainIds.png"))
    broken.write_text(good)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.preparation.json2labelImg", None)
    with pytest.raises(UserError, match="pip install cityscapesscripts"):
        prepare.prepare("cityscapes", out, tree, progress=False)


def test_many_polygons_are_converted_by_several_processes(tmp_path, monkeypatch):
    tree = city_tree(tmp_path)
    monkeypatch.setattr(prepare, "_INLINE", 2)
    prepare.convert_cityscapes(tree, progress=False)
    assert len(list(tree.rglob("*_labelTrainIds.png"))) == 6
    mask = np.asarray(Image.open(next(tree.rglob("lindau_000001*_labelTrainIds.png"))))
    assert np.array_equal(mask, expected_train_ids())


def test_masks_that_are_there_need_no_conversion(tmp_path, monkeypatch):
    write_shapes(tmp_path / "shapes", train=3, val=2, layouts=("cityscapes",))
    monkeypatch.setitem(sys.modules, "cityscapesscripts.preparation.json2labelImg", None)
    assert prepare.prepare("cityscapes", tmp_path / "out", tmp_path / "shapes" / "cityscapes", progress=False)
    assert len(SemanticDataset(**find_semantic(tmp_path / "out").dataset_args("val"))) == 2


# --- COCO --------------------------------------------------------------------------------------------------------------------


def test_coco_from_archives_with_panoptic(tmp_path, coco_shapes):
    tree, have, out = coco_tree(tmp_path / "source", coco_shapes), tmp_path / "have", tmp_path / "coco"
    for split in ("train", "val"):
        make_zip(have / f"{split}2017.zip", tree, [f"{split}2017"])
        make_zip(tree / "annotations" / f"panoptic_{split}2017.zip", tree / "annotations", [f"panoptic_{split}2017"])
    make_zip(have / "annotations_trainval2017.zip", tree, [f"annotations/instances_{s}2017.json" for s in ("train", "val")])
    assert prepare.prepare("coco", out, have, progress=False)
    found = find_coco_json(out)
    assert found.train_json == out / "annotations/instances_train2017.json" and found.img_dirs[1] == out / "val2017"
    assert len(CocoDetection(found.train_json)) == 3
    with pytest.raises(UserError, match="neither panoptic_annotations_trainval2017.zip"):
        prepare.prepare("coco", out, have, panoptic=True, progress=False)
    names = [f"annotations/panoptic_{split}2017.{kind}" for split in ("train", "val") for kind in ("json", "zip")]
    make_zip(have / "panoptic_annotations_trainval2017.zip", tree, names)
    times = files_of(out / "train2017")
    assert prepare.prepare("coco", out, have, panoptic=True, progress=False)
    assert files_of(out / "train2017") == times and len(list((out / "annotations/panoptic_train2017").iterdir())) == 3
    assert not list(out.rglob("*.zip")) and prepare.prepare("coco", out, have, panoptic=True) is False
    assert prepare.prepare("coco", out, have) is False
    assert run("semantic", "--panoptic-json", out / "annotations/panoptic_val2017.json", "--panoptic-dir",
               out / "annotations/panoptic_val2017", "--images", out / "val2017", "--out", tmp_path / "sem") == 0  # fmt: skip
    check_masks(SemanticDataset(**find_semantic(tmp_path / "sem").dataset_args("val")))


def test_coco_that_is_unpacked_already(tmp_path, coco_shapes, capsys):
    tree = coco_tree(tmp_path / "coco", coco_shapes)
    assert run("coco", "--out", tree) == 0 and "train2017: 3 files *.jpg" in capsys.readouterr().out
    assert run("coco", "--out", tree) == 0 and "nothing to do" in capsys.readouterr().out
    os.rename(tree / "train2017", tmp_path / "elsewhere")
    assert run("coco", "--from", tree, "--out", tree) == 2
    text = capsys.readouterr().err
    assert "neither train2017.zip" in text and "http://images.cocodataset.org/zips/train2017.zip" in text


def test_two_processes_do_not_disturb_each_other(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    source, out = ade_zip(tmp_path), tmp_path / "ade"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare.prepare("ade20k", out, source.parent, progress=False), range(4)))
    assert sorted(results) == [False, False, False, True] and not left_over(out)


def test_the_second_run_is_fast_on_many_files(tmp_path, monkeypatch):
    base = ade_tree(tmp_path)
    for index in range(4, 2004):
        for folder, suffix in (("images", "jpg"), ("annotations", "png")):
            first = base / folder / "training" / f"ADE_train_00000001.{suffix}"
            with contextlib.suppress(FileExistsError):
                os.link(first, first.with_name(f"ADE_train_{index:08d}.{suffix}"))
    prepare.prepare("ade20k", base, subset=True, progress=False)
    start = time.perf_counter()
    assert prepare.prepare("ade20k", base, subset=True) is False
    assert time.perf_counter() - start < 1.0
