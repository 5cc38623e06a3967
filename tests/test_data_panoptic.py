"""Panoptic and instance data: datasets, masks through every transform, folders that people bring, preparation, the engine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as mask_tools
from test_data_prepare import ade_tree, city_tree, miniature, run, write_picture  # noqa: F401  (miniature is a fixture)

from mmvit.data import (
    ADE20K_CLASSES,
    ADE20K_THINGS,
    CITYSCAPES_CLASSES,
    CITYSCAPES_THINGS,
    COCO_PANOPTIC_CATEGORY_IDS,
    COCO_PANOPTIC_CLASSES,
    COCO_PANOPTIC_PALETTE,
    COCO_THINGS,
    CocoDetection,
    FixedSizePad,
    Flip,
    InstanceMasks,
    LoadAnnotations,
    LoadImage,
    LoadPanoptic,
    PackDetInputs,
    PackPanoptic,
    PackSemanticSegments,
    PanopticCopyPaste,
    PanopticDataset,
    RandomChoice,
    RandomChoiceResize,
    RandomCrop,
    RandomRangeCrop,
    RandomResize,
    RequireSegments,
    Resize,
    ResizeToMultiple,
    SanitizeBoxes,
    TestTimeAug,
    ensure_shapes,
    find_coco_json,
    find_panoptic,
    find_semantic,
    prepare,
)
from mmvit.data.panoptic_files import ids_to_rgb, write_panoptic
from mmvit.data.prepare_panoptic import instances_from_panoptic
from mmvit.engine import assemble, load_config
from mmvit.engine.datasets import count_images, data_name
from mmvit.errors import UserError
from mmvit.evaluation import CocoBoxMetric, PanopticMetric

CATEGORIES = [
    {"id": 7, "name": "grass", "isthing": 0, "color": [0, 120, 0]},
    {"id": 3, "name": "dog", "isthing": 1, "color": [200, 0, 0]},
    {"id": 5, "name": "cat", "isthing": 1, "color": [0, 0, 200]},
    {"id": 9, "name": "sky", "isthing": 0, "color": [0, 200, 200]},
]
DOG, CAT, GRASS, SKY = range(4)  # labels: by category id


def colour(identity: int) -> tuple[int, int, int]:
    return identity & 255, identity >> 8 & 255, identity >> 16


def write_data(root: Path, pictures: list[tuple[np.ndarray, list[dict]]], name: str = "panoptic") -> Path:
    """Pictures whose pixels have the colour of their segment's id, stored without loss."""
    (root / "images").mkdir(parents=True)
    predictions = []
    for k, (ids, segments) in enumerate(pictures):
        Image.fromarray(ids_to_rgb(ids)).save(root / f"images/{k}.png")
        predictions.append({"image_id": k + 1, "file_name": f"{k}.png", "ids": ids, "segments_info": segments})
    write_panoptic(root / name, root / f"{name}.json", predictions, CATEGORIES)
    return root


def scene() -> tuple[np.ndarray, list[dict]]:
    """48 x 64: sky over grass (in two segments), two dogs, a crowd of cats, a void strip."""
    ids = np.full((48, 64), 900, np.int32)
    ids[24:] = 70_001
    ids[40:, :32] = 70_002
    ids[4:12, 4:20] = 5
    ids[30:44, 40:60] = 1_000_000
    ids[14:20, 30:44] = 77
    ids[:, 62:] = 0
    categories = {900: 9, 70_001: 7, 70_002: 7, 5: 3, 1_000_000: 3, 77: 5}
    return ids, [{"id": i, "category_id": c, "iscrowd": int(i == 77)} for i, c in categories.items()]


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "mine", [scene(), scene()])


def dataset(root: Path, *steps, **options) -> PanopticDataset:
    return PanopticDataset(root / "panoptic.json", pipeline=[LoadImage(), LoadPanoptic(), *steps], **options)


# -- dataset ---------------------------------------------------------------------------------------


def test_labels_follow_the_category_ids(data):
    found = dataset(data)
    assert found.metainfo == {
        "classes": ("dog", "cat", "grass", "sky"),
        "palette": [(200, 0, 0), (0, 0, 200), (0, 120, 0), (0, 200, 200)],
        "things": (0, 1),
        "cat_ids": [3, 5, 7, 9],
    }
    sample = PanopticDataset(data / "panoptic.json").get_sample(1)
    assert sample["img_id"] == 2 and sample["img_path"] == str(data / "images/1.png")
    assert sample["pan_path"] == str(data / "panoptic/1.png") and (sample["height"], sample["width"]) == (48, 64)
    assert sample["segments"][:2] == [
        {"id": 900, "label": SKY, "iscrowd": 0},
        {"id": 70_001, "label": GRASS, "iscrowd": 0},
    ]
    with pytest.raises(IndexError):
        found[2]
    found.check()


def test_targets_of_training(data):
    sample = dataset(data, PackPanoptic(semantic=True))[0]
    truth, segments = scene()
    packed = sample["data_samples"]
    expected = [(SKY, truth == 900), (GRASS, truth >= 70_001), (DOG, truth == 5), (DOG, truth == 1_000_000)]
    expected[1] = (GRASS, (truth == 70_001) | (truth == 70_002))  # stuff is one mask per class
    assert packed.gt_segments.labels.tolist() == [label for label, _ in expected]
    assert packed.gt_segments.labels.dtype == torch.int64 and packed.gt_segments.masks.dtype == torch.bool
    for mask, (_, wanted) in zip(packed.gt_segments.masks.numpy(), expected):
        assert np.array_equal(mask, wanted)
    void = (truth == 0) | (truth == 77)  # crowds do not count
    assert np.array_equal(packed.gt_void.data.numpy()[0], void)
    labels = packed.gt_sem_seg.data.numpy()[0]
    assert labels.dtype == np.uint8 and (labels[truth == 77] == CAT).all() and (labels[truth == 0] == 255).all()
    assert (labels[truth == 5] == DOG).all() and (labels[truth >= 1_000_000] == DOG).all()
    assert packed.pan_path.endswith("panoptic/0.png") and packed.img_id == 1 and sample["inputs"].shape == (3, 48, 64)
    lean = dataset(data, PackPanoptic(segments=False, semantic=True))[0]["data_samples"]
    assert "gt_segments" not in lean and "gt_sem_seg" in lean
    assert "gt_sem_seg" not in dataset(data, PackPanoptic())[0]["data_samples"]


def test_segments_that_vanish_are_dropped(data):
    def window(sample: dict) -> dict:
        from mmvit.data.transforms import crop_sample

        return crop_sample(sample, 0, 0, 22, 30)

    packed = dataset(data, window, PackPanoptic())[0]["data_samples"]
    assert packed.gt_segments.labels.tolist() == [SKY, DOG] and packed.gt_segments.masks.shape == (2, 22, 30)
    assert not packed.gt_void.data.any() and packed.img_shape == (22, 30)


def test_chosen_classes_leave_the_others_void(data):
    found = dataset(data, PackPanoptic(), classes=["sky", "dog"])
    truth, _ = scene()
    packed = found[0]["data_samples"]
    assert found.metainfo["cat_ids"] == [9, 3] and found.metainfo["things"] == (1,)
    assert packed.gt_segments.labels.tolist() == [0, 1, 1]
    others = (truth == 77) | (truth == 0) | (truth == 70_001) | (truth == 70_002)
    assert np.array_equal(packed.gt_void.data.numpy()[0], others)


def test_evaluation_keeps_the_map_at_the_original_size(data):
    steps = [LoadImage(), Resize((96, 96), keep_ratio=True), LoadPanoptic(), PackPanoptic(segments=False, semantic=True)]
    sample = PanopticDataset(data / "panoptic.json", pipeline=steps, test_mode=True)[0]
    assert sample["inputs"].shape == (3, 72, 96) and sample["data_samples"].gt_sem_seg.data.shape == (1, 48, 64)
    views = [LoadImage(), TestTimeAug(scales=(0.5, 1.0), size=64), LoadPanoptic(), PackPanoptic(segments=False)]
    sample = PanopticDataset(data / "panoptic.json", pipeline=views, test_mode=True)[0]
    assert len(sample["inputs"]) == 4 and sample["data_samples"].view_flips == [False, True] * 2


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["categories"][0].pop("isthing"), r"category 'grass' has no 'isthing'. Write 1 for things"),
        (lambda c: c.update(annotations=[]), r"panoptic.json: 'annotations' is empty"),
        (lambda c: c["images"].pop(0), r"'images' does not give file_name, height and width of image id 1"),
        (lambda c: c["categories"][1].update(name="grass"), r"two categories have the name 'grass'"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4), r"id 900 of image id 1 has category id 4"),
        (lambda c: c["annotations"][0]["segments_info"].pop(0), r"image id 1: .*0.png has pixels of id 900, which is no seg"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=5), r"image id 1: segments_info holds segment id 5 twice"),
        (lambda c: c["images"][0].update(width=65), r"the picture is 64x48 pixels, but .*panoptic.json says 65x48"),
    ],
)
def test_faults_of_a_file_are_named(data, change, message):
    edit(data / "panoptic.json", change)
    with pytest.raises(UserError, match=message):
        dataset(data, PackPanoptic(), img_dir=data / "images")[0]


def test_faults_of_folders_are_named(data):
    with pytest.raises(UserError, match="class 'dogs' is not among the file's categories. Did you mean 'dog'"):
        dataset(data, classes=["dogs"])
    with pytest.raises(UserError, match=r"single text 'dog'. Write \['dog'\]"):
        dataset(data, classes="dog")
    with pytest.raises(UserError, match="nowhere: no such folder of pictures"):
        dataset(data, img_dir="nowhere")
    (data / "panoptic/1.png").unlink()
    with pytest.raises(UserError, match="1 of 2 panoptic maps are missing in .*mine/panoptic, first:\n.*panoptic/1.png"):
        dataset(data).check()
    with pytest.raises(UserError, match="image id 2.*its panoptic map .*1.png does not exist"):
        dataset(data)[1]
    Image.fromarray(np.zeros((48, 65, 3), np.uint8)).save(data / "panoptic/1.png")
    with pytest.raises(UserError, match=r"image id 2: the map .*1.png is 65x48 pixels, its picture .*1.png 64x48"):
        dataset(data)[1]
    (data / "images/0.png").unlink()
    with pytest.raises(UserError, match="1 of 2 pictures are missing in .*mine/images, first:\n.*images/0.png"):
        dataset(data).check()
    shutil.rmtree(data / "images")
    with pytest.raises(UserError, match="found none of its pictures"):
        dataset(data)


# -- transforms ------------------------------------------------------------------------------------

CHAINS = {
    "flip": [Flip(p=1)],
    "resize": [Resize((31, 90), interpolation="nearest")],
    "keep": [Resize((100, 77), keep_ratio=True, interpolation="nearest")],
    "multiple": [ResizeToMultiple(20, interpolation="nearest")],
    "choice": [RandomChoiceResize([(30, 60), (50, 200), 33], interpolation="nearest")],
    "jitter": [RandomResize(40, (0.3, 3.0), interpolation="nearest"), RandomCrop(40), FixedSizePad(40, fill=0)],
    "detr": [
        RandomChoice([[Flip(p=1)], [RandomResize(64, (0.5, 1.5), "nearest"), RandomRangeCrop(20, 40), Flip(p=0.5)]]),
        ResizeToMultiple(8, interpolation="nearest"),
    ],
}


def inner(values: np.ndarray, radius: int = 2) -> np.ndarray:
    """The pixels whose neighbours have their value."""
    values, around = values.astype(np.float32), np.ones((2 * radius + 1,) * 2)
    return cv2.dilate(values, around) == cv2.erode(values, around)


@pytest.mark.parametrize("name", CHAINS)
def test_maps_stay_on_their_pixels(data, name):
    """The picture's colours are the ids of the segments: after any geometry of nearest neighbours, both must still agree
    (borders move by a pixel where a new centre falls between two old pixels).
    """
    seen = set()
    for seed in range(12):
        sample = dataset(data, *CHAINS[name])[(0, seed)]
        ids = np.append(0, [s["id"] for s in PanopticDataset(data / "panoptic.json").get_sample(0)["segments"]])
        assert sample["pan_ids"].dtype == np.int32 and sample["pan_ids"].shape == sample["img"].shape[:2] == sample["img_shape"]
        differ = (ids_to_rgb(ids[sample["pan_ids"]]) != sample["img"]).any(axis=2)
        assert not differ[inner(sample["pan_ids"])].any() and differ.mean() < (0.06 if name != "flip" else 1e-9)
        assert np.array_equal(dataset(data, *CHAINS[name])[(0, seed)]["img"], sample["img"])
        seen.add(sample["img"].tobytes())
    assert (len(seen) > 1) == (name in ("choice", "jitter", "detr"))


def polygons(box: tuple[int, int, int, int]) -> list[list[int]]:
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def objects(kind: str, seed: int) -> dict:
    """A dark picture with two bright rectangles, their masks given as polygons, RLE, counts or pixels."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, [40, 30], (2, 2))
    boxes = [(*corner.tolist(), *(corner + rng.integers(12, 30, 2)).tolist()) for corner in corners]
    image, masks = np.zeros((64, 80, 3), np.uint8), np.zeros((2, 64, 80), bool)
    for mask, (x1, y1, x2, y2), channel in zip(masks, boxes, (0, 1)):
        mask[y1:y2, x1:x2] = True
        image[y1:y2, x1:x2, channel] = 255
    rles = [mask_tools.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    segmentations = {"polygons": [polygons(box) for box in boxes], "rle": rles, "pixels": [None, None]}[kind]
    instances = [
        {"bbox": box, "label": k, "segmentation": segmentation, "ann_id": k}
        for k, (box, segmentation) in enumerate(zip(boxes, segmentations))
    ]
    sample = {"img": image, "ori_shape": (64, 80), "img_shape": (64, 80), "rng": rng, "instances": instances}
    sample = LoadAnnotations(with_mask=kind != "pixels")(sample)
    return {**sample, "gt_masks": masks} if kind == "pixels" else sample


@pytest.mark.parametrize("kind", ["polygons", "rle", "pixels"])
@pytest.mark.parametrize("name", CHAINS)
def test_boxes_and_masks_stay_on_their_pixels(name, kind):
    total = 0
    for seed in range(15):
        sample = objects(kind, seed)
        for step in (*CHAINS[name], SanitizeBoxes(from_masks=seed % 2 == 1)):
            sample = step(sample)
        assert len(sample["gt_labels"]) == len(sample["gt_bboxes"]) == len(sample["gt_masks"])
        instances = PackDetInputs()(sample)["data_samples"].gt_instances
        assert instances.masks.shape[1:] == sample["img"].shape[:2] and instances.masks.dtype == torch.bool
        for label, box, mask in zip(instances.labels.tolist(), instances.bboxes.tolist(), instances.masks.numpy()):
            painted = sample["img"][..., label] == 255
            assert not (mask ^ painted)[inner(mask)].any() and (name != "flip" or np.array_equal(mask, painted))
            rows, columns = np.nonzero(mask)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(box) - extent).max() <= (0 if seed % 2 else 1.01)
            total += 1
        gone = set(range(2)) - set(instances.labels.tolist())
        assert all((sample["img"][..., label] == 255).sum() <= 60 for label in gone)  # nothing, or a sliver
    assert total >= 15


def test_masks_cost_nothing_until_they_are_drawn():
    square = [{"segmentation": [[0, 0, 4000, 0, 4000, 4000, 0, 4000]]} for _ in range(300)]
    masks = InstanceMasks.read(square, (4000, 4000), "f.json", 1).resize(8000, 8000).window(0, 0, 5000, 5000).flip()
    assert masks.shape == (300, 5000, 5000) and "pixels" not in vars(masks)  # 7 GiB
    few = masks.window(0, 0, 8, 6)[np.arange(300) < 3]
    assert few.shape == (3, 8, 6) and few.pixels.all() and few.boxes().tolist() == [[0, 0, 6, 8]] * 3
    assert len(few[np.array([True, False, True])]) == 2
    beyond = masks[:2].window(-10, -20, 30, 50)
    assert beyond.boxes()[0].tolist() == [20, 10, 50, 30] and beyond.any().all()
    assert not masks[:2].window(0, 6000, 8, 8).any().any()


@pytest.mark.parametrize("segmentation", ["polygon", "pixels"])
def test_what_was_cut_off_does_not_come_back(segmentation):
    masks = InstanceMasks.of(np.ones((1, 40, 40), bool))
    if segmentation == "polygon":
        masks = InstanceMasks.read([{"segmentation": polygons((0, 0, 40, 40))}], (40, 40), "f.json", 1)
    masks = masks.window(10, 4, 20, 12).window(0, 0, 30, 30)  # a crop, padded
    assert masks.boxes().tolist() == [[0, 0, 12, 20]]
    assert masks.flip().boxes().tolist() == [[18, 0, 30, 20]] and masks.resize(60, 15).boxes().tolist() == [[0, 0, 6, 40]]
    assert masks.flip().window(0, 10, 20, 30).flip().boxes().tolist() == [[10, 0, 22, 20]]


def test_a_polygon_is_drawn_at_the_final_size():
    triangle = [{"segmentation": [[2.0, 2.0, 18.0, 2.0, 2.0, 18.0], [1.0, 1.0, 2.0, 2.0]]}]  # and a line, which is no area
    masks = InstanceMasks.read(triangle, (20, 20), "f.json", 1)
    large = masks.resize(200, 200).pixels[0]
    assert abs(large.sum() - 160 * 160 / 2) < 400 and large[30, 30] and not large[150, 150]
    assert large.sum(axis=1)[30] - large.sum(axis=1)[31] in (0, 1, 2)  # smooth edge, not steps of ten pixels
    for bad in ([[1.0, 1.0, 2.0, 2.0]], [[1.0, 1.0, 2.0, 2.0, 3.0]], [[0, 0, 1, 0, 1, float("nan")]]):
        with pytest.raises(UserError, match=r"f.json: 'segmentation' of annotation id 4 \(image id 1\) is no mask of 20x20"):
            InstanceMasks.read([{"segmentation": bad, "ann_id": 4}], (20, 20), "f.json", 1)


def test_empty_objects_are_dropped():
    sample = objects("polygons", 3)
    sample["gt_masks"] = InstanceMasks.of(np.stack([np.zeros((64, 80), bool), np.ones((64, 80), bool)]))
    sample = SanitizeBoxes()(sample)
    assert sample["gt_labels"].tolist() == [1] and len(sample["gt_masks"]) == 1
    sample = RandomCrop(5)(objects("rle", 2) | {"gt_bboxes": np.array([[70, 50, 71, 51], [0, 0, 80, 64]], np.float32)})
    assert sample["gt_labels"].tolist() == [1] and sample["gt_bboxes"].tolist() == [[0, 0, 5, 5]]


def test_ranges_of_sizes_and_crops(data):
    shapes = {dataset(data, RandomChoiceResize([(32, 100), (64, 70)]))[(0, seed)]["img_shape"] for seed in range(20)}
    assert shapes == {(32, 43), (53, 70)}  # short side 32; long side 70
    sizes = np.array([dataset(data, RandomRangeCrop(20, 50))[(0, seed)]["img_shape"] for seed in range(150)])
    assert sizes.min(axis=0).tolist() == [20, 20] and sizes.max(axis=0).tolist() == [48, 50]
    sample = dataset(data, FixedSizePad((60, 40), fill=(1, 2, 3)))[0]
    assert sample["img_shape"] == (60, 64) and (sample["img"][48:] == (1, 2, 3)).all() and not sample["pan_ids"][48:].any()
    branches = [dataset(data, RandomChoice([[Flip(1)], [Resize(8)]], prob=[0.25, 0.75]))[(0, seed)] for seed in range(200)]
    assert 0.15 < np.mean([sample["flip"] for sample in branches]) < 0.35


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomChoiceResize([]),
        lambda: RandomChoiceResize(800),
        lambda: RandomChoiceResize([(800, 0)]),
        lambda: RandomRangeCrop(600, 384),
        lambda: FixedSizePad(0),
        lambda: FixedSizePad(8, fill=(1, 2)),
        lambda: RandomChoice([]),
        lambda: RandomChoice([Flip()]),
        lambda: RandomChoice([[Flip()], []], prob=[0.5, 0.6]),
        lambda: RequireSegments(-1),
        lambda: PanopticCopyPaste([], p=2),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(UserError):
        build()


def test_varied_crops_read_the_panoptic_map(data):
    shares = []
    for seed in range(40):
        sample = dataset(data, RandomCrop(12, cat_max_ratio=0.75), PackPanoptic(semantic=True))[(0, seed)]
        labels = sample["data_samples"].gt_sem_seg.data
        shares.append(labels[labels != 255].bincount().max() / max(1, (labels != 255).sum()))
    assert np.mean(np.array(shares) < 0.75) > 0.9
    with pytest.raises(UserError, match="cat_max_ratio needs a map of classes"):
        RandomCrop(8, cat_max_ratio=0.5)({"img": np.zeros((9, 9, 3), np.uint8), "rng": np.random.default_rng(0)})


def test_copy_paste_of_things_and_some_stuff(tmp_path):
    plain = np.full((40, 50), 900, np.int32), [{"id": 900, "category_id": 9}]
    root = write_data(tmp_path / "two", [plain, scene()])
    truth, segments = scene()

    class First(PanopticDataset):
        """The first picture; others are drawn from all."""

        def get_sample(self, index: int) -> dict:
            return super().get_sample(index)

    seen, sizes = set(), set()
    paste = PanopticCopyPaste([LoadImage(), LoadPanoptic()], stuff=0.5)
    for seed in range(40):
        found = First(root / "panoptic.json", pipeline=[LoadImage(), LoadPanoptic(), paste, PackPanoptic()])[(0, seed)]
        image, packed = found["inputs"].permute(1, 2, 0).numpy(), found["data_samples"]
        height, width = image.shape[:2]
        ids = image.astype(int) @ [1, 256, 65536]
        grey = ids == 128 + 256 * 128 + 65536 * 128
        if 5 in ids:
            corner = truth[:height, :width]
            assert (ids[corner == 5] == 5).all() and (ids[corner == 1_000_000] == 1_000_000).all()  # all things
            assert not (ids == 77).any()  # no crowd
            assert packed.gt_segments.labels.tolist().count(DOG) == 2
            seen.add(frozenset({70_001, 70_002} & set(np.unique(ids).tolist())))
            assert not packed.gt_void.data[0].numpy()[~grey].any()
        else:
            assert (ids == 900).all()
        assert np.array_equal(packed.gt_void.data[0].numpy(), grey)
        labels = {900: SKY, 70_001: GRASS, 70_002: GRASS, 5: DOG, 1_000_000: DOG}
        for label, mask in zip(packed.gt_segments.labels.tolist(), packed.gt_segments.masks.numpy()):
            assert {labels[i] for i in np.unique(ids[mask]).tolist()} == {label}
        sizes.add((height, width))
    assert len(seen) == 4 and (40, 50) in sizes and (44, 60) in sizes  # grown to hold the second dog
    assert len(dataset(root, PanopticCopyPaste([LoadImage(), LoadPanoptic()], p=0.0))[0]["segments"]) == 1


def test_rejected_samples_are_drawn_again(tmp_path):
    empty = np.zeros((10, 10), np.int32), []
    crowd = np.full((10, 10), 3, np.int32), [{"id": 3, "category_id": 5, "iscrowd": 1}]
    full = np.full((10, 10), 4, np.int32), [{"id": 4, "category_id": 5}]
    root = write_data(tmp_path / "some", [empty, crowd, full])
    picked = [dataset(root, RequireSegments(99), PackPanoptic())[(0, seed)]["data_samples"].img_id for seed in range(5)]
    assert picked == [3] * 5
    with pytest.raises(UserError, match="100 pictures in a row were rejected by the pipeline"):
        dataset(root, RequireSegments(100))[0]


def test_semantic_targets_of_mask_classifiers(data, tmp_path):
    packed = dataset(data, PackSemanticSegments())[0]["data_samples"]
    truth, _ = scene()
    wanted = {DOG: (truth == 5) | (truth == 1_000_000), CAT: truth == 77, GRASS: truth // 10 == 7000, SKY: truth == 900}
    assert packed.gt_segments.labels.tolist() == list(wanted)
    for mask, expected in zip(packed.gt_segments.masks.numpy(), wanted.values()):
        assert np.array_equal(mask, expected)
    assert np.array_equal(packed.gt_void.data[0].numpy(), truth == 0)
    labels = np.array([[3, 3, 255], [0, 255, 253]], np.uint8)
    sample = {"img": np.zeros((2, 3, 3), np.uint8), "gt_sem_seg": labels, "mask_path": "m.png", "img_id": 1}
    packed = PackSemanticSegments()(sample)["data_samples"]
    assert packed.gt_segments.labels.tolist() == [0, 3, 253] and packed.mask_path == "m.png"
    assert packed.gt_segments.masks.sum(dim=(1, 2)).tolist() == [1, 2, 1]
    assert packed.gt_void.data[0].tolist() == [[False, False, True], [False, True, False]]


# -- tables ----------------------------------------------------------------------------------------


def test_tables_of_things_and_stuff():
    assert len(COCO_PANOPTIC_CLASSES) == len(set(COCO_PANOPTIC_CLASSES)) == len(COCO_PANOPTIC_PALETTE) == 133
    ids = list(COCO_PANOPTIC_CATEGORY_IDS)
    assert ids == sorted(set(ids)) and len(ids) == 133
    by_name = dict(zip(COCO_PANOPTIC_CLASSES, COCO_PANOPTIC_CATEGORY_IDS))
    assert (by_name["toothbrush"], by_name["banner"], by_name["tree-merged"], by_name["rug-merged"]) == (90, 92, 184, 200)
    assert tuple(range(80)) == COCO_THINGS and len(set(COCO_PANOPTIC_PALETTE)) == 133
    things = [ADE20K_CLASSES[label] for label in ADE20K_THINGS]
    assert len(things) == 100 and things[:4] == ["bed", "windowpane", "cabinet", "person"] and things[-1] == "flag"
    assert not {"wall", "sky", "rock", "swimming pool", "tent", "shower"} & set(things)
    assert [CITYSCAPES_CLASSES[label] for label in CITYSCAPES_THINGS][::7] == ["person", "bicycle"]


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("panoptic") / "shapes"
    return ensure_shapes(root, train=5, val=3, size=64, layouts=("coco", "panoptic", "cityscapes", "ade20k"), crowds=0.5)


def test_folders_that_are_found(shapes, data, tmp_path, monkeypatch):
    found = find_panoptic(shapes)
    assert found.train.img_dir == shapes / "train" and found.val.instances == shapes / "annotations/instances_val.json"
    sets = [PanopticDataset(**found.dataset_args(split)) for split in ("train", "val")]
    assert [len(d) for d in sets] == [5, 3] and sets[0].metainfo["things"] == tuple(range(8))
    for one in sets:
        one.check()
    mine = find_panoptic(data)
    assert mine.train == mine.val and mine.val.png_dir == data / "panoptic" and mine.val.instances is None
    assert find_panoptic(data / "panoptic.json").val == mine.val

    coco = tmp_path / "data" / "coco"  # the official names
    for split in ("train", "val"):
        shutil.copytree(shapes / split, coco / f"{split}2017")
        shutil.copytree(shapes / f"annotations/panoptic_{split}", coco / f"annotations/panoptic_{split}2017")
        for kind in ("instances", "panoptic"):
            shutil.copy(shapes / f"annotations/{kind}_{split}.json", coco / f"annotations/{kind}_{split}2017.json")
    found = find_panoptic("coco", data_root=tmp_path / "data")
    assert found.train.img_dir == coco / "train2017" and found.val.instances.name == "instances_val2017.json"
    assert find_panoptic(coco).val == found.val
    (coco / "annotations/panoptic_train2017.json").unlink()
    with pytest.raises(UserError, match=r"no .*panoptic_train2017.json. Run `python tools/prepare_dataset.py coco --panoptic"):
        find_panoptic("coco", data_root=tmp_path / "data")
    found = find_panoptic("coco", data_root=tmp_path / "data", training=False)
    assert found.train == found.val


def test_other_places_of_pictures_and_maps(data):
    (data / "panoptic").rename(data / "maps")
    (data / "images").rename(data / "imgs")
    (data / "panoptic.json").rename(data / "panoptic_all.json")
    found = find_panoptic(data)
    assert found.val.png_dir == data / "maps" and found.val.img_dir == data / "imgs"
    assert PanopticDataset(data / "panoptic_all.json", pipeline=[LoadImage(), LoadPanoptic()])[0]["pan_ids"].max() == 6


def test_folders_that_do_not_fit(data, tmp_path):
    with pytest.raises(UserError, match="no such folder. Give the folder of your pictures and panoptic maps"):
        find_panoptic(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no panoptic json found \(the folder is empty\).\nExpected one of\n  annotations/pan"):
        find_panoptic(tmp_path / "empty")
    shutil.copy(data / "panoptic.json", data / "other_panoptic.json")
    with pytest.raises(UserError, match="cannot tell which of these is for training and which for validation"):
        find_panoptic(data)
    (data / "other_panoptic.json").unlink()
    (data / "panoptic").rename(data / "elsewhere")
    with pytest.raises(UserError, match="panoptic: no such folder; the PNGs of .*panoptic.json are expected there"):
        find_panoptic(data)
    with pytest.raises(UserError, match="prepare_dataset.py cityscapes --panoptic --from DIR --out"):
        find_panoptic("cityscapes", data_root=tmp_path)


# -- preparation -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def few_instances(monkeypatch):
    parts = tuple(dataclasses.replace(p, count={20210: 3, 2000: 2}[p.count]) for p in prepare.INSTANCES.parts)
    monkeypatch.setattr(prepare, "INSTANCES", dataclasses.replace(prepare.INSTANCES, parts=parts))


def test_cityscapes_panoptic_and_instances(tmp_path):
    tree, out = city_tree(tmp_path / "have"), tmp_path / "data" / "cityscapes"
    car = [[12, 2], [20, 2], [20, 9], [12, 9]]
    for path in tree.rglob("*_polygons.json"):
        edit(path, lambda c: c["objects"].append({"label": "car", "polygon": car}))
        edit(path, lambda c: c["objects"].append({"label": "persongroup", "polygon": [[24, 2], [30, 2], [30, 9]]}))
    assert prepare.prepare("cityscapes", out, tree, panoptic=True, progress=False)
    found = find_panoptic("cityscapes", data_root=tmp_path / "data")
    sets = [PanopticDataset(**found.dataset_args(s), pipeline=[LoadImage(), LoadPanoptic()]) for s in ("train", "val")]
    assert [len(d) for d in sets] == [3, 2] and sets[0].metainfo["classes"] == CITYSCAPES_CLASSES
    assert sets[0].metainfo["things"] == CITYSCAPES_THINGS and sets[0].metainfo["cat_ids"] == list(range(19))
    for one in sets:
        one.check()
    sample = sets[1].get_sample(1)
    assert sample["img_id"] == "lindau_000001_000019"
    assert sample["img_path"].endswith("val/lindau/lindau_000001_000019_leftImg8bit.png")
    labels = sorted((s["label"], s["iscrowd"]) for s in sample["segments"])
    assert labels == [(0, 0), (11, 1), (13, 0), (13, 0)]
    assert len(list((out / "gtFine/train").rglob("*_instanceIds.png"))) == 3
    assert prepare.prepare("cityscapes", out, tree, panoptic=True) is False
    (found.val.png_dir / "lindau_000001_000019_gtFine_panoptic.png").unlink()
    assert prepare.prepare("cityscapes", out, tree, panoptic=True, progress=False) and len(os.listdir(found.val.png_dir)) == 2
    files = find_coco_json(out)
    assert files.img_dirs[1] == out / "leftImg8bit" / "val"
    instances = CocoDetection(files.val_json, files.img_dirs[1], with_mask=True, pipeline=[LoadImage(), LoadAnnotations(True)])
    sample = instances[0]
    assert instances.metainfo["classes"] == CITYSCAPES_CLASSES[11:] and sample["gt_labels"].tolist() == [2, 2]
    assert sorted(mask.sum() for mask in sample["gt_masks"]) == [64, 72] and find_semantic(out).classes == CITYSCAPES_CLASSES


def test_converted_cityscapes_scores_as_the_shapes_do(shapes, tmp_path):
    """The same pictures through Cityscapes' files and through COCO's hold the same segments."""
    out = tmp_path / "city"
    shutil.copytree(shapes / "cityscapes", out)
    from mmvit.data.prepare_panoptic import prepare_cityscapes

    prepare_cityscapes(out, progress=False)
    steps = [LoadImage(), LoadPanoptic(), PackPanoptic()]
    city, coco = (PanopticDataset(**find_panoptic(root).dataset_args("train"), pipeline=steps) for root in (out, shapes))
    assert len(city) == len(coco) == 5
    for index in range(5):
        ours, theirs = (d[index]["data_samples"] for d in (city, coco))
        assert torch.equal(ours.gt_void.data, theirs.gt_void.data)
        masks = [{mask.numpy().tobytes() for mask in d.gt_segments.masks} for d in (ours, theirs)]
        assert masks[0] == masks[1]


def ade_instances(base: Path) -> Path:
    """Objects for `ade_tree`: a bed whose lower half is of another bed, and number 100, a flag."""
    for semantic in sorted((base / "annotations").rglob("*.png")):
        labels = np.full((8, 12), 1, np.uint8)  # wall
        labels[:, :6], labels[:4, 8:10], labels[6:, 10:] = 8, 150, 150  # bed, flags; the second flag is no object
        labels[0, 11] = 0
        cv2.imwrite(str(semantic), labels)
        objects = np.zeros((8, 12, 3), np.uint8)  # BGR
        objects[:4, :6] = (0, 1, 1)
        objects[4:, :6] = (0, 2, 1)
        objects[:4, 8:10] = (0, 3, 100)
        write_picture(base / "annotations_instance" / semantic.parent.name / semantic.name, objects)
    return base


@pytest.mark.parametrize("form", ["tar", "tree"])
def test_ade20k_panoptic_and_instances(tmp_path, form, capsys):
    base, out = ade_instances(ade_tree(tmp_path / "have")), tmp_path / "data" / "ade20k"
    if form == "tar":
        with tarfile.open(tmp_path / "have" / "annotations_instance.tar", "w") as tar:
            tar.add(base / "annotations_instance", "annotations_instance")
        shutil.rmtree(base / "annotations_instance")
    assert run("ade20k", "--panoptic", "--from", tmp_path / "have", "--out", out) == 0
    assert f"{out}: prepared" in capsys.readouterr().out
    found = find_panoptic("ade20k", data_root=tmp_path / "data")
    assert found.val.img_dir == out / "images/validation" and found.val.instances == out / "ade20k_instance_val.json"
    val = PanopticDataset(**found.dataset_args("val"), pipeline=[LoadImage(), LoadPanoptic(), PackPanoptic()])
    assert val.metainfo["classes"] == ADE20K_CLASSES and val.metainfo["things"] == ADE20K_THINGS and len(val) == 2
    val.check()
    packed = val[1]["data_samples"]
    assert sorted(packed.gt_segments.labels.tolist()) == [0, 7, 7, 149] and packed.img_id == 2
    void = np.zeros((8, 12), bool)
    void[6:, 10:] = void[0, 11] = True  # a thing's pixels without an object, and no class at all
    assert np.array_equal(packed.gt_void.data[0].numpy(), void)
    files = find_coco_json(out)
    steps = [LoadImage(), LoadAnnotations(with_mask=True)]
    instances = CocoDetection(files.train_json, files.img_dirs[0], with_mask=True, pipeline=steps)
    assert instances.metainfo["classes"] == tuple(ADE20K_CLASSES[k] for k in ADE20K_THINGS) and len(instances) == 3
    sample = instances[2]
    assert sorted(mask.sum() for mask in sample["gt_masks"]) == [8, 24, 24] and sorted(sample["gt_labels"]) == [0, 0, 99]
    assert run("ade20k", "--panoptic", "--from", tmp_path / "have", "--out", out) == 0
    assert "already prepared" in capsys.readouterr().out and len(find_semantic(out).classes) == 150


def test_ade20k_maps_that_do_not_belong_together(tmp_path):
    base = ade_instances(ade_tree(tmp_path / "have"))
    for path in (base / "annotations_instance").rglob("*.png"):
        image = cv2.imread(str(path))
        image[..., 2][image[..., 2] > 0] = 2
        cv2.imwrite(str(path), image)
    with pytest.raises(UserError, match="only 0% of the objects' pixels have the class that"):
        prepare.prepare("ade20k", tmp_path / "ade", base, panoptic=True, progress=False)
    path = base / "annotations_instance/training/ADE_train_00000002.png"
    cv2.imwrite(str(path), np.full((8, 12, 3), 101, np.uint8))
    with pytest.raises(UserError, match="class 101 of 100"):
        prepare.prepare("ade20k", tmp_path / "ade2", base, panoptic=True, progress=False)
    cv2.imwrite(str(path), np.zeros((9, 12, 3), np.uint8))
    with pytest.raises(UserError, match="12x9 pixels, but .* has 12x8"):
        prepare.prepare("ade20k", tmp_path / "ade3", base, panoptic=True, progress=False)


@pytest.mark.parametrize("damage", ["cut", "no tar", "link", "outside"])
def test_damaged_tar_archives_are_named(tmp_path, damage):
    base = ade_instances(ade_tree(tmp_path / "have"))
    archive = tmp_path / "have" / "annotations_instance.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(base / "annotations_instance", "annotations_instance")
        if damage in ("link", "outside"):
            info = tarfile.TarInfo("annotations_instance/link.png" if damage == "link" else "../evil.png")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    shutil.rmtree(base / "annotations_instance")
    if damage in ("cut", "no tar"):
        archive.write_bytes(archive.read_bytes()[:2500] if damage == "cut" else b"<html>" * 200)
    messages = {"link": "is a link", "outside": "would be written outside"}
    with pytest.raises(UserError, match=messages.get(damage, "truncated or not a tar archive|is damaged")):
        prepare.prepare("ade20k", tmp_path / "ade", tmp_path / "have", panoptic=True, progress=False)
    assert not list(tmp_path.rglob("evil.png")) and not (tmp_path / "ade/annotations_instance").exists()


# -- metrics on these data -------------------------------------------------------------------------


def test_instances_of_a_panoptic_file(shapes, tmp_path):
    found = find_panoptic(shapes)
    count = instances_from_panoptic(found.val.ann_file, tmp_path / "instances.json", progress=False)
    ours, theirs = (json.loads(p.read_text()) for p in (tmp_path / "instances.json", found.val.instances))
    assert count == len(ours["annotations"]) == len(theirs["annotations"])
    keys = ("image_id", "category_id", "area", "bbox", "iscrowd", "segmentation")
    plain = [sorted(json.dumps([a[key] for key in keys]) for a in content["annotations"]) for content in (ours, theirs)]
    assert [row.replace(".0", "") for row in plain[0]] == [row.replace(".0", "") for row in plain[1]]


def test_the_truth_scores_one(shapes):
    found = find_panoptic(shapes)
    val = PanopticDataset(**found.dataset_args("val"), pipeline=[LoadImage(), LoadPanoptic()])
    panoptic, masks = PanopticMetric(found.val.ann_file, found.val.png_dir), CocoBoxMetric(found.val.instances, ("segm",))
    for metric in (panoptic, masks):
        metric.dataset_meta = val.metainfo
    for index in range(len(val)):
        sample = val[index]
        segments = [dict(id=k + 1, label=s["label"], score=1.0) for k, s in enumerate(sample["segments"])]
        rles = [mask_tools.encode(np.asfortranarray(sample["pan_ids"] == s["id"], dtype=np.uint8)) for s in segments]
        labels, scores = np.array([s["label"] for s in segments]), np.ones(len(rles))
        instances = dict(bboxes=np.zeros((len(rles), 4)), scores=scores, labels=labels, masks=rles)
        ids = dict(data=torch.from_numpy(sample["pan_ids"])[None])
        result = dict(img_id=sample["img_id"], pred_panoptic_seg=ids, segments_info=segments, pred_instances=instances)
        for metric in (panoptic, masks):
            metric.process(None, [result])
    assert panoptic.evaluate(len(val))["PQ"] == 1
    assert masks.evaluate(len(val))["coco/segm_mAP"] == pytest.approx(1)


# -- engine ----------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path) -> Config:
    """A panoptic recipe on the debug network."""
    path = tmp_path / "recipe.py"
    path.write_text("""
data = "shapes"
_load = [dict(type="LoadImage"), dict(type="LoadPanoptic")]
_paste = [*_load, dict(type="RandomResize", scale=64), dict(type="RandomCrop", size=128)]
_train = [
    *_load,
    dict(type="RandomChoice", transforms=[
        [dict(type="RandomChoiceResize", scales=[(96, 256), (160, 256)])],
        [dict(type="RandomRangeCrop", low=64, high=96), dict(type="RandomResize", scale=128)],
    ]),
    dict(type="RandomCrop", size=128),
    dict(type="Flip"),
    dict(type="PanopticCopyPaste", transforms=_paste),
    dict(type="FixedSizePad", size=128),
    dict(type="RequireSegments"),
    dict(type="PackPanoptic"),
]
_val = [dict(type="LoadImage"), dict(type="Resize", size=(160, 160), keep_ratio=True), dict(type="LoadPanoptic"),
        dict(type="PackPanoptic", segments=False, semantic=True)]
_loader = dict(batch_size=2, num_workers=0, sampler=dict(type="ResumableSampler", shuffle=False))
train_dataloader = dict(_loader, drop_last=True, dataset=dict(type="PanopticDataset", pipeline=_train))
val_dataloader = dict(_loader, dataset=dict(type="PanopticDataset", test_mode=True, pipeline=_val))
test_dataloader = val_dataloader
val_evaluator = [dict(type="PanopticMetric"), dict(type="CocoBoxMetric", iou_types=("segm",)), dict(type="SemanticMetric")]
test_evaluator = val_evaluator
optim_wrapper = dict(type="AmpWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(type="IterTrainLoop", max_iters=2, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
model = dict(type="MaskSegmenter", backbone="resnet_debug", data_preprocessor=dict(size=(128, 128)))
default_hooks = dict()
""")
    return load_config(path)


def test_data_gives_classes_things_and_files(config, shapes, tmp_path):
    cfg = assemble(config, data=shapes, work_dir=tmp_path, device="cpu", size=64, batch_size=4)
    assert cfg.model.num_classes == 12 and tuple(cfg.model.things) == tuple(range(8))
    assert cfg.train_dataloader.dataset.ann_file.endswith("panoptic_train.json")
    assert cfg.val_dataloader.dataset.classes[0] == "circle" and count_images(cfg.train_dataloader.dataset) == 5
    panoptic, masks, semantic = cfg.test_evaluator
    assert panoptic.ann_file.endswith("panoptic_val.json") and panoptic.png_dir.endswith("annotations/panoptic_val")
    assert masks.ann_file.endswith("instances_val.json") and semantic.out_dir == str(tmp_path)
    assert data_name(cfg) == str(shapes)
    steps = cfg.train_dataloader.dataset.pipeline
    scales, (crop, resize) = steps[2].transforms[0][0].scales, steps[2].transforms[1]
    assert scales == [(48, 128), (80, 128)] and (crop.low, crop.high) == (32, 48) and resize.scale == (64, 64)
    assert steps[3].size == steps[5].transforms[3].size == steps[6].size == cfg.model.data_preprocessor.size == (64, 64)
    assert cfg.val_dataloader.dataset.pipeline[1].size == (80, 80)
    again = assemble(cfg, work_dir=tmp_path, device="cpu")  # what was assembled stays as it is
    assert again.train_dataloader == cfg.train_dataloader and again.model == cfg.model
    few = assemble(config, data=shapes, work_dir=tmp_path, device="cpu", options=["train_dataloader.batch_size=9"])
    assert few.train_dataloader.batch_size == 5
    plain = assemble(config, data=shapes, work_dir=tmp_path, device="cpu", no_augment=True)
    kinds = [step.type for step in plain.train_dataloader.dataset.pipeline]
    assert kinds == ["LoadImage", "LoadPanoptic", "Resize", "RequireSegments", "PackPanoptic"]
    assert plain.model.data_preprocessor.size is None


def test_data_of_ones_own_and_of_the_wrong_kind(config, data, shapes, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("mmvit.engine.datasets.say", said.append)
    cfg = assemble(config, data=data, work_dir=tmp_path, device="cpu")
    assert cfg.model.num_classes == 4 and tuple(cfg.model.things) == (0, 1)
    assert [metric.type for metric in cfg.val_evaluator] == ["PanopticMetric", "SemanticMetric"]
    assert len(said) == 1 and said[0].startswith("left out of the evaluation: CocoBoxMetric")
    with pytest.raises(UserError, match="model.num_classes=9 in the config, but .*panoptic.json has 4 classes"):
        assemble(config, data=data, device="cpu", options=["model.num_classes=9"])
    with pytest.raises(UserError, match="this config reads panoptic maps"):
        assemble(config, data=data, device="cpu", mask_format="index")
    (data / "panoptic/1.png").unlink()
    with pytest.raises(UserError, match="1 of 2 panoptic maps are missing"):
        assemble(config, data=data, device="cpu")
    assert assemble(config, data=data, device="cpu", training=False).model.num_classes == 4
    boxes, semantic = ensure_shapes(tmp_path / "boxes", train=2, val=1, size=32), shapes / "ade20k"
    with pytest.raises(UserError, match=r"boxes \(COCO-style\), but the config needs panoptic maps"):
        assemble(config, data=boxes, device="cpu")
    with pytest.raises(UserError, match="semantic masks, but the config needs panoptic maps"):
        assemble(config, data=semantic, device="cpu")
    configs = Path(__file__).parents[1] / "configs"
    with pytest.raises(UserError, match="panoptic maps, but the config detects objects"):
        assemble(load_config(configs / "rtdetr_shapes.py"), data=data, device="cpu")
    with pytest.raises(UserError, match="panoptic maps, but the config needs semantic masks"):
        assemble(load_config(configs / "vwformer_shapes.py"), data=data, device="cpu")
    monkeypatch.chdir(tmp_path)
    for name in ("coco", "ade20k", "cityscapes"):
        with pytest.raises(UserError, match=f"prepare_dataset.py {name} --panoptic"):
            assemble(config, data=name, device="cpu")
