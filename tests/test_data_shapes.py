"""The synthetic data: deterministic, and every layout says the same about every pixel."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmvit.data import CocoDetection, check_dataset, ensure_shapes, find_coco_json, write_shapes
from mmvit.data.shapes import CITYSCAPES_IDS, CLASSES, LAYOUTS, STUFF, THINGS, make_scene, semantic_map
from mmvit.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "all"
    return write_shapes(folder, train=12, val=6, seed=5, layouts=LAYOUTS, crowds=0.3)


def scenes(split="train", count=12):
    return [make_scene(5, split, i, crowds=0.3) for i in range(count)]


def read_png(path):
    return np.asarray(Image.open(path))


def load_coco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_and_more_pictures_do_not_change_the_first(tmp_path):
    first = files_of(write_shapes(tmp_path / "a", train=3, val=2, seed=1, layouts=LAYOUTS))
    assert files_of(write_shapes(tmp_path / "b", train=3, val=2, seed=1, layouts=LAYOUTS)) == first
    more = files_of(write_shapes(tmp_path / "c", train=5, val=2, seed=1, layouts=LAYOUTS))
    images = [name for name in first if not name.endswith(".json")]
    assert len(images) > 20 and all(more[name] == first[name] for name in images)
    other = files_of(write_shapes(tmp_path / "d", train=3, val=2, seed=2))
    assert other["train/000000.jpg"] != first["train/000000.jpg"] != first["val/000000.jpg"]


def test_scenes_are_varied():
    many = [make_scene(0, "train", i) for i in range(150)]
    things = [thing for scene in many for thing in scene.things]
    assert {thing.label for thing in things} == set(range(len(THINGS)))
    assert {int(value) for scene in many for value in np.unique(scene.stuff)} == {8, 9, 10, 11, 255}
    assert len({scene.stuff.shape for scene in many}) > 100
    ratios = [scene.stuff.shape[1] / scene.stuff.shape[0] for scene in many]
    assert min(ratios) < 0.7 and max(ratios) > 1.4
    areas = np.array([thing.mask.sum() for thing in things])
    assert (areas < 32**2).mean() > 0.2 and (areas > 32**2).mean() > 0.2 and (areas > 96**2).any()
    occluded = [thing.mask.sum() / thing.full_area for thing in things]
    assert min(occluded) >= 0.25 and np.mean(np.array(occluded) < 0.95) > 0.05
    counts = [len(scene.things) for scene in many]
    assert min(counts) >= 1 and 2 < np.mean(counts) < 8 and max(counts) <= 9


def test_masks_do_not_overlap():
    for scene in scenes():
        assert np.sum([thing.mask for thing in scene.things], axis=0).max() <= 1


def test_instances_file(root):
    coco = load_coco(root / "annotations" / "instances_train.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(THINGS)
    crowds = 0
    for scene, image_id in zip(scenes(), coco.getImgIds()):
        picture = coco.loadImgs(image_id)[0]
        image = read_png(root / "train" / picture["file_name"])
        assert image.shape == (picture["height"], picture["width"], 3)
        assert np.abs(image.astype(int) - scene.image).mean() < 6  # JPEG
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(annotations) == len(scene.things)
        for annotation, thing in zip(annotations, scene.things):
            mask = coco.annToMask(annotation).astype(bool)
            assert np.array_equal(mask, thing.mask)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box and annotation["area"] == mask.sum()
            assert annotation["category_id"] == thing.label + 1 and annotation["iscrowd"] == thing.crowd
            crowds += annotation["iscrowd"]
    assert crowds > 0


@pytest.mark.parametrize("split,count", [("train", 12), ("val", 6)])
def test_panoptic_file_and_maps(root, split, count):
    content = json.loads((root / "annotations" / f"panoptic_{split}.json").read_text())
    assert [(c["name"], c["isthing"]) for c in content["categories"]] == [(name, int(name in THINGS)) for name in CLASSES]
    assert len(content["annotations"]) == len(content["images"]) == count
    for annotation, picture, scene in zip(content["annotations"], content["images"], scenes(split, count)):
        assert annotation["image_id"] == picture["id"]
        rgb = read_png(root / "annotations" / f"panoptic_{split}" / annotation["file_name"]).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert len(segments) == len(annotation["segments_info"]) and set(segments) == set(np.unique(ids)) - {0}
        labels = semantic_map(scene)
        assert np.array_equal(ids == 0, labels == 255)
        for identity, segment in segments.items():
            mask = ids == identity
            assert segment["area"] == mask.sum()
            assert set(np.unique(labels[mask])) == {segment["category_id"] - 1}
            x, y, width, height = segment["bbox"]
            rows, columns = np.nonzero(mask)
            assert (x, y, width, height) == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        stuff = [s["category_id"] for s in segments.values() if s["category_id"] > len(THINGS)]
        assert len(stuff) == len(set(stuff))


def test_ade20k_layout(root):
    assert (root / "ade20k" / "classes.txt").read_text().split() == list(CLASSES)
    for split, name, prefix, count in (("train", "training", "ADE_train", 12), ("val", "validation", "ADE_val", 6)):
        pictures = sorted((root / "ade20k" / "images" / name).iterdir())
        maps = sorted((root / "ade20k" / "annotations" / name).iterdir())
        assert (
            [p.stem for p in pictures] == [m.stem for m in maps] and len(maps) == count and maps[0].stem == f"{prefix}_00000001"
        )
        for path, scene in zip(maps, scenes(split, count)):
            labels = read_png(path)
            assert labels.dtype == np.uint8 and labels.max() <= len(CLASSES)
            assert np.array_equal(labels.astype(int), (semantic_map(scene).astype(int) + 1) % 256)


def test_cityscapes_layout(root):
    for split, count in (("train", 12), ("val", 6)):
        pictures = sorted((root / "cityscapes" / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        assert len(pictures) == count
        for path, scene in zip(pictures, scenes(split, count)):
            city, sequence, frame = path.name.removesuffix("_leftImg8bit.png").split("_")
            assert path.parent.name == city and len(sequence) == len(frame) == 6
            assert np.array_equal(read_png(path), scene.image)
            stem = str(path).replace("leftImg8bit", "gtFine", 1).removesuffix("_leftImg8bit.png") + "_gtFine_"
            label_ids, train_ids, instances = (
                cv2.imread(f"{stem}{kind}.png", cv2.IMREAD_UNCHANGED) for kind in ("labelIds", "labelTrainIds", "instanceIds")
            )
            labels = semantic_map(scene)
            for label, name in enumerate(CLASSES):
                assert set(np.unique(label_ids[labels == label])) <= {CITYSCAPES_IDS[name][0]}
                assert set(np.unique(train_ids[labels == label])) <= {CITYSCAPES_IDS[name][1]}
            assert set(np.unique(label_ids[labels == 255])) <= {0} and set(np.unique(train_ids[labels == 255])) <= {255}
            assert np.array_equal(np.where(instances >= 1000, instances // 1000, instances), label_ids)
            objects = [np.unique(instances[thing.mask]) for thing in scene.things]
            assert all(len(ids) == 1 and (ids[0] >= 1000) != thing.crowd for ids, thing in zip(objects, scene.things))
            singles = [int(ids[0]) for ids, thing in zip(objects, scene.things) if not thing.crowd]
            assert len(set(singles)) == len(singles)


def test_train_ids_are_the_official_ones():
    """The eight things take the Cityscapes classes with instances (train ids 11..18) in order of their label ids."""
    assert [CITYSCAPES_IDS[name][1] for name in THINGS] == list(range(11, 19))
    assert {CITYSCAPES_IDS[name][0] for name in STUFF} == {23, 21, 22, 7}  # sky, vegetation, terrain, road


def test_default_layout_trains(tmp_path):
    folder = write_shapes(tmp_path / "s", train=2, val=1)
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", "shapes.json", "train", "val"]
    found = find_coco_json(folder)
    for json_file, images, count in ((found.train_json, found.img_dirs[0], 2), (found.val_json, found.img_dirs[1], 1)):
        dataset = CocoDetection(json_file, images)
        check_dataset(dataset)
        assert len(dataset) == count and dataset.metainfo["classes"] == THINGS


def test_ensure_writes_once_and_again_for_other_settings(tmp_path):
    folder = ensure_shapes(tmp_path / "s", train=2, val=1)
    stamp = (folder / "train" / "000000.jpg").stat().st_mtime_ns
    assert ensure_shapes(tmp_path / "s", train=2, val=1, layouts=["coco"]) == folder
    assert (folder / "train" / "000000.jpg").stat().st_mtime_ns == stamp
    ensure_shapes(folder, train=3, val=1)
    assert len(list((folder / "train").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]  # no drafts left


def test_foreign_folders_are_not_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="mine: exists and is not a shapes folder"):
        ensure_shapes(tmp_path / "mine", train=1, val=1)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert len(list(ensure_shapes(tmp_path / "empty", train=1, val=1).iterdir())) == 4


def _ensure(folder: str) -> str:
    return str(ensure_shapes(folder, train=4, val=2))


def test_processes_may_ask_at_once(tmp_path):
    with ProcessPoolExecutor(3) as pool:
        assert set(pool.map(_ensure, [str(tmp_path / "s")] * 3)) == {str(tmp_path / "s")}
    assert [path.name for path in tmp_path.iterdir()] == ["s"] and len(list((tmp_path / "s" / "train").iterdir())) == 4


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"layouts": ["cocoo"]}, "unknown layout 'cocoo'.*Did you mean 'coco'"),
        ({"trian": 3}, "unknown setting 'trian'.*'train'"),
        ({"size": 8}, "size must be"),
        ({"train": 0}, "train must be"),
        ({"seed": -1}, "seed must be"),
        ({"crowds": 2}, "crowds and odd_colours in 0..1"),
        ({"odd_colours": -0.1}, "odd_colours -0.1"),
    ],
)
def test_bad_settings_are_explained(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        write_shapes(tmp_path / "s", **settings)


def test_command(tmp_path):
    tool = Path(__file__).parents[1] / "tools" / "make_shapes.py"
    run = subprocess.run(
        [sys.executable, tool, tmp_path / "s", "--train", "2", "--val", "1", "--layouts", "coco", "ade20k"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "2 + 1 pictures" in run.stdout, run.stderr
    assert (tmp_path / "s" / "ade20k" / "images" / "training").is_dir()
    failed = subprocess.run([sys.executable, tool, tmp_path / "t", "--layouts", "voc"], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: shapes: unknown layout 'voc'")
