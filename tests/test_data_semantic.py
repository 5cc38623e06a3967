"""Semantic segmentation data: pairing, meaning of masks, transforms, folders that people bring, the check before training."""

from __future__ import annotations

import functools
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmvit.data import (
    ADE20K_CLASSES,
    ADE20K_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    Flip,
    LoadImage,
    LoadSemanticMask,
    MaskReader,
    PackSegInputs,
    PhotometricDistort,
    RandomCrop,
    RandomResize,
    Resize,
    ResizeToMultiple,
    SegPhotometricDistort,
    SemanticDataset,
    TestTimeAug,
    check_masks,
    ensure_shapes,
    find_semantic,
    make_palette,
    palette_for,
    read_mask,
    semantic_from_panoptic,
    write_shapes,
)
from mmvit.data import mask_check as mask_check_module
from mmvit.data import semantic_folder as semantic_folder_module
from mmvit.data.semantic_folder import read_names
from mmvit.data.shapes import CITYSCAPES_IDS, CLASSES, make_scene, semantic_map
from mmvit.data.transforms_semantic import scale_contrast, scale_saturation, shift_brightness, shift_hue
from mmvit.errors import UserError

NAMES = ("sky", "road", "tree")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(
        tmp_path_factory.mktemp("data") / "shapes", train=6, val=3, layouts=("panoptic", "ade20k", "cityscapes")
    )


def save(path: Path, values: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def picture(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stripes(*values: int, height: int = 20, width: int = 30) -> np.ndarray:
    """Rows of the values, in bands of equal height."""
    return np.repeat(np.array(values, dtype=np.uint8)[np.arange(height) * len(values) // height, None], width, axis=1)


def folder(root: Path, masks: dict[str, np.ndarray], names: str | None = "sky\nroad\ntree\n", **options) -> Path:
    """root/images, root/masks and root/classes.txt."""
    for index, (name, values) in enumerate(masks.items()):
        save(root / "images" / f"{Path(name).stem}.jpg", picture(index))
        save(root / "masks" / (name if "." in name else f"{name}.png"), values, **options)
    if names is not None:
        (root / "classes.txt").write_text(names)
    return root


def dataset(root: Path, split: str = "train", **options) -> SemanticDataset:
    return SemanticDataset(**find_semantic(root, **options).dataset_args(split))


def loaded(data: SemanticDataset, index: int = 0) -> dict:
    return LoadSemanticMask()(LoadImage()(data.get_sample(index)))


# --- class tables ------------------------------------------------------------------------------------------------------------


def test_tables_equal_those_of_mmseg_and_cityscapesscripts():
    from cityscapesscripts.helpers.labels import trainId2label
    from mmseg.datasets import ADE20KDataset, CityscapesDataset

    for data, names, palette in (
        (ADE20KDataset, ADE20K_CLASSES, ADE20K_PALETTE),
        (CityscapesDataset, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE),
    ):
        assert names == tuple(name.strip() for name in data.METAINFO["classes"])
        assert [list(colour) for colour in palette] == data.METAINFO["palette"]
    assert tuple(trainId2label[k].name for k in range(19)) == CITYSCAPES_CLASSES
    assert tuple(trainId2label[k].color for k in range(19)) == CITYSCAPES_PALETTE
    assert palette_for(ADE20K_CLASSES) == list(ADE20K_PALETTE) and palette_for(CITYSCAPES_CLASSES[:3])[0] == (128, 64, 128)
    assert palette_for(["sky", "unheard of"]) == make_palette(2)


# --- pairing -----------------------------------------------------------------------------------------------------------------


def test_pairs_by_path_below_the_folders_whatever_the_suffix(tmp_path):
    for name in ("b/2.jpeg", "a/1.PNG", "a/2.bmp", ".hidden.png", "notes.txt"):
        save(tmp_path / "i" / name, picture()) if not name.endswith("txt") else (tmp_path / "i" / name).write_text("x")
    for name in ("a/1.png", "a/2.png", "b/2.png", ".cache/x.png"):
        save(tmp_path / "m" / name, stripes(0, 1))
    data = SemanticDataset(tmp_path / "i", tmp_path / "m", NAMES, test_mode=True)
    assert len(data) == 3 and data.test_mode
    assert [data.get_sample(k)["img_id"] for k in range(3)] == ["a/1", "a/2", "b/2"]
    assert data.image_path(2) == str(tmp_path / "i/b/2.jpeg") and data.mask_path(0) == str(tmp_path / "m/a/1.png")
    assert data.metainfo["classes"] == NAMES and len(data.metainfo["palette"]) == 3
    with pytest.raises(IndexError, match="index 3 in a dataset of 3"):
        data[3]


def test_pairs_cityscapes_names_and_split_files(tmp_path, shapes):
    root = shapes / "cityscapes"
    args = {"img_suffix": "_leftImg8bit.png", "mask_suffix": "_gtFine_labelTrainIds.png"}
    data = SemanticDataset(root / "leftImg8bit/train", root / "gtFine/train", CITYSCAPES_CLASSES, **args)
    assert len(data) == 6 and data.get_sample(1)["img_id"] == "shapesburg/shapesburg_000001_000001"
    (tmp_path / "some.txt").write_text(
        "shapesburg/shapesburg_000003_000003\n\nshapesburg/shapesburg_000001_000001_leftImg8bit.png\n"
    )
    data = SemanticDataset(
        root / "leftImg8bit/train", root / "gtFine/train", CITYSCAPES_CLASSES, split=tmp_path / "some.txt", **args
    )
    assert [data.get_sample(k)["img_id"][-6:] for k in range(len(data))] == ["000001", "000003"]
    (tmp_path / "some.txt").write_text("shapesburg/elsewhere\n")
    with pytest.raises(UserError, match="1 of 1 names have no picture.*\n.*elsewhere_leftImg8bit.png"):
        SemanticDataset(root / "leftImg8bit/train", root / "gtFine/train", NAMES, split=tmp_path / "some.txt", **args)


def test_mismatches_are_named(tmp_path):
    folder(tmp_path, {name: stripes(0) for name in "abcdefg"})
    args = (tmp_path / "images", tmp_path / "masks", NAMES)
    for name in "abcdef":
        (tmp_path / "masks" / f"{name}.png").rename(tmp_path / f"{name}.png")
    with pytest.raises(
        UserError, match=r"images: 6 of 7 pictures have no mask in .*masks.*\n  a\.png\n(.*\n)*  \.\.\. \(6 in all"
    ):
        SemanticDataset(*args)
    for name in "abcdef":
        (tmp_path / f"{name}.png").rename(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "images" / "c.jpg").unlink()
    with pytest.raises(UserError, match=r"masks: 1 of 7 masks have no picture in .*\n  c\.\*"):
        SemanticDataset(*args)
    save(tmp_path / "images" / "a.png", picture())
    with pytest.raises(UserError, match=r"a\.jpg and a\.png have the same name"):
        SemanticDataset(*args)
    with pytest.raises(UserError, match="no such folder of pictures"):
        SemanticDataset(tmp_path / "none", tmp_path / "masks", NAMES)
    with pytest.raises(UserError, match="holds no masks that end in _x.png"):
        SemanticDataset(*args, mask_suffix="_x.png")
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(UserError, match="no such split file"):
        SemanticDataset(*args, split=tmp_path / "none.txt")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"classes": "sky"}, "single text"),
        ({"classes": ("sky", "sky")}, "'sky' twice"),
        ({"classes": ("sky", 3)}, "3 is not a text"),
        ({"classes": [str(k) for k in range(255)]}, "1 to 254 classes, got 255"),
        ({"mask_format": "binery"}, "Did you mean 'binary'"),
        ({"mask_format": "binary"}, "two classes, but the data has 3"),
        ({"mask_format": "rgb"}, "colour for each of the 3 classes, got 0"),
        ({"mask_format": "rgb", "palette": [(0, 0, 0), (1, 1, 1), (0, 0, 0)]}, "stands for two classes"),
        ({"palette": [(0, 0, 300)] * 3}, "no RGB colour"),
        ({"palette": [(0, 0, 3)]}, "1 colours for 3 classes"),
        ({"ignore_index": -1}, "0 to 65535"),
    ],
)
def test_impossible_arguments(tmp_path, options, message):
    folder(tmp_path, {"a": stripes(0)})
    with pytest.raises(UserError, match=message):
        SemanticDataset(tmp_path / "images", tmp_path / "masks", **{"classes": NAMES, **options})


# --- meaning of masks --------------------------------------------------------------------------------------------------------


def test_mask_formats():
    values = np.array([[0, 1, 2, 3, 127, 128, 255]], dtype=np.uint8)
    read = {
        (name, ignore): MaskReader(2 if name == "binary" else 3, name, ignore).labels(values)[0].tolist()
        for name, ignore in (("index", 255), ("index", 3), ("reduce_zero", 255), ("binary", 255), ("binary", 127))
    }
    assert read["index", 255] == [0, 1, 2, 254, 254, 254, 255]  # 254: means nothing
    assert read["index", 3] == [0, 1, 2, 255, 254, 254, 255]
    assert read["reduce_zero", 255] == [255, 0, 1, 2, 254, 254, 255]
    assert read["binary", 255] == [0, 0, 0, 0, 0, 1, 1]
    assert read["binary", 127] == [0, 0, 0, 0, 255, 1, 1]
    colours = MaskReader(2, "rgb", palette=[(255, 0, 0), (0, 0, 0)], ignore_colours=[(7, 8, 9)])
    painted = np.array([[(255, 0, 0), (0, 0, 0), (7, 8, 9), (0, 0, 1)]], dtype=np.uint8)
    assert pickle.loads(pickle.dumps(colours)).labels(painted)[0].tolist() == [0, 1, 255, 254]
    assert colours.labels(painted[..., 1])[0].tolist() == [1, 1, 254, 1]  # a grey file
    assert len(pickle.dumps(colours)) < 2000


def test_read_mask_of_every_kind(tmp_path):
    values = stripes(0, 1, 2)
    indexed = Image.fromarray(values, mode="P")
    indexed.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    indexed.save(tmp_path / "p.png")
    files = {
        "grey.png": save(tmp_path / "l.png", values),
        "palette": tmp_path / "p.png",
        "grey as RGB": save(tmp_path / "rgb.png", np.repeat(values[..., None], 3, axis=2)),
        "grey with alpha": save(tmp_path / "la.png", np.dstack([values, np.full_like(values, 9)])),
        "RGBA": save(tmp_path / "rgba.png", np.dstack([values] * 4)),
        "16 bits": save(tmp_path / "deep.png", values.astype(np.uint16)),
        "gif": save(tmp_path / "x.gif", values),
        "tiff": save(tmp_path / "x.tif", values),
    }
    for kind, path in files.items():
        assert np.array_equal(read_mask(path), values), kind
    assert np.array_equal(read_mask(save(tmp_path / "bits.png", values > 0)), values > 0)
    assert read_mask(tmp_path / "p.png", colours=True)[0, 0].tolist() == [200, 0, 0]
    assert read_mask(save(tmp_path / "big.png", np.full((4, 5), 700, dtype=np.uint16))).tolist() == [[700] * 5] * 4
    with pytest.raises(UserError, match="none.png does not exist"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match="empty.png is empty or not a picture"):
        read_mask(tmp_path / "empty.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "whole.png", noise).read_bytes()[:2000])
    with pytest.raises(UserError, match="cut.png is damaged or truncated"):
        read_mask(tmp_path / "cut.png")


def test_load_semantic_mask(tmp_path):
    root = folder(tmp_path, {"a": stripes(1, 3, 255, 0), "b": stripes(0, 9), "c": stripes(0)[:, :20], "d": stripes(0)})
    data = dataset(root, mask_format="reduce_zero")
    labels = loaded(data)["gt_sem_seg"]
    assert labels.dtype == np.uint8 and np.array_equal(labels, stripes(0, 2, 255, 255))
    with pytest.raises(UserError, match=r"b\.png: 300 pixels hold values that are no class: 9 \(3 classes.*--mask-format"):
        loaded(data, 1)
    with pytest.raises(UserError, match=r"c\.png: the mask is 20x20 pixels, its picture .*c\.jpg 30x20"):
        loaded(data, 2)
    save(tmp_path / "masks" / "d.png", np.full((20, 30), 700, dtype=np.uint16))
    with pytest.raises(UserError, match="no class: 700"):
        loaded(data, 3)
    assert (loaded(dataset(root, mask_format="index", ignore_index=700), 3)["gt_sem_seg"] == 255).all()


def test_shapes_masks_in_both_layouts(shapes):
    ade, city = find_semantic(shapes / "ade20k"), find_semantic(shapes / "cityscapes")
    assert ade.classes == CLASSES and city.classes == CITYSCAPES_CLASSES and find_semantic(shapes) == ade
    train_ids = np.array([CITYSCAPES_IDS[name][1] for name in CLASSES] + [255])
    for index in range(3):
        expected = semantic_map(make_scene(0, "val", index))
        assert np.array_equal(loaded(dataset(shapes / "ade20k", "val"), index)["gt_sem_seg"], expected)
        labels = loaded(dataset(shapes / "cityscapes", "val"), index)["gt_sem_seg"]
        assert np.array_equal(labels, train_ids[np.minimum(expected, len(CLASSES))])
    check_masks(*(dataset(shapes / name, split) for name in ("ade20k", "cityscapes") for split in ("train", "val")))


# --- transforms --------------------------------------------------------------------------------------------------------------


def sample(seed: int = 0, height: int = 40, width: int = 70) -> dict:
    """A picture whose red channel is 20 times the class of the pixel."""
    rng = np.random.default_rng(seed)
    labels = cv2.resize(rng.integers(0, 6, (5, 8), dtype=np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    labels[:3] = 255
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[..., 0] = np.where(labels == 255, 255, labels * 20)
    return {
        "img": image,
        "gt_sem_seg": labels,
        "rng": rng,
        "ori_shape": (height, width),
        "img_shape": (height, width),
        "scale_factor": (1.0, 1.0),
        "flip": False,
        "img_id": "x",
        "img_path": "x.jpg",
        "mask_path": "x.png",
    }


@pytest.mark.parametrize(
    "transform",
    [
        Flip(1.0),
        RandomCrop((24, 32)),
        RandomCrop((24, 32), cat_max_ratio=0.5),
        Resize((80, 140), interpolation="nearest"),
        RandomResize((140, 80), ratio_range=(0.5, 2.0), interpolation="nearest"),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_the_mask_stays_on_its_pixels(transform):
    for seed in range(5):
        after = transform(sample(seed))
        labels, red = after["gt_sem_seg"], after["img"][..., 0]
        assert labels.shape == red.shape == tuple(after["img_shape"]) and labels.dtype == np.uint8
        agree = red == np.where(labels == 255, 255, labels * 20)
        assert agree.mean() > (0.85 if "Resize" in type(transform).__name__ else 0.9999)


def test_resizes_equal_mmcv():
    import mmcv

    for seed, limits in enumerate([(2048, 512), (100, 60), (60, 100), (140, 37), (33, 33)]):
        before = sample(seed, height=40 + 7 * seed)
        image, labels = before["img"], before["gt_sem_seg"]
        after = Resize(limits, keep_ratio=True, interpolation="cv2_bilinear")(before)
        assert np.array_equal(after["img"], mmcv.imrescale(image, limits))
        assert np.array_equal(after["gt_sem_seg"], mmcv.imrescale(labels, limits, interpolation="nearest"))
        assert after["scale_factor"] == (after["img"].shape[1] / 70, after["img"].shape[0] / len(image))
        once = sample(seed, height=40 + 7 * seed)
        after = ResizeToMultiple(32)(once)
        assert np.array_equal(after["img"], mmcv.imresize_to_multiple(image, 32, scale_factor=1))
        assert np.array_equal(
            after["gt_sem_seg"], mmcv.imresize_to_multiple(labels, 32, scale_factor=1, interpolation="nearest")
        )


def test_random_resize_draws_the_whole_range():
    factors = [RandomResize((140, 80), (0.5, 2.0))(sample(seed))["scale_factor"][1] / 2 for seed in range(200)]
    assert 0.49 < min(factors) < 0.55 and 1.9 < max(factors) <= 2.01 and abs(np.mean(factors) - 1.25) < 0.1


def test_random_crop_avoids_windows_of_one_class():
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[40:, 40:] = 1
    labels[:, :8] = 255
    shares, places = {0.75: [], 1.0: []}, set()
    for seed in range(200):
        for limit, found in shares.items():
            before = {"img": np.dstack([labels] * 3), "gt_sem_seg": labels, "rng": np.random.default_rng(seed)}
            window = RandomCrop(16, cat_max_ratio=limit)(before)["gt_sem_seg"]
            assert window.shape == (16, 16)
            counts = np.bincount(window[window != 255], minlength=2)
            found.append(counts.max() / max(1, counts.sum()) < 0.75)
    chance = np.mean(shares[1.0])
    assert 0.02 < chance < 0.3 and abs(np.mean(shares[0.75]) - (1 - (1 - chance) ** 11)) < 0.15
    for seed in range(300):
        rows, columns = RandomCrop((60, 70))._window({"img": labels, "rng": np.random.default_rng(seed)})
        places.add((rows.start, columns.start))
    assert places == {(row, 0) for row in range(5)}  # as wide as there is
    small = RandomCrop((100, 100), cat_max_ratio=0.75)({"img": labels, "gt_sem_seg": labels, "rng": np.random.default_rng(0)})
    assert small["img"].shape == (64, 64)


def test_photometric_steps_equal_mmseg(monkeypatch):
    from mmseg.datasets.transforms import PhotoMetricDistortion
    from mmseg.datasets.transforms import transforms as theirs

    bgr = picture(3, 40, 50)
    rgb = bgr[..., ::-1].copy()
    official = PhotoMetricDistortion()
    amount = [0.0]
    monkeypatch.setattr(theirs.random, "randint", lambda *bounds: amount[0] if len(bounds) == 2 else 1)
    monkeypatch.setattr(theirs.random, "uniform", lambda low, high: amount[0])
    for step, name, amounts in (
        (shift_brightness, "brightness", (-31.7, -3.2, 0.0, 12.9, 32.0)),
        (scale_contrast, "contrast", (0.5, 0.83, 1.0, 1.31, 1.5)),
        (scale_saturation, "saturation", (0.5, 0.83, 1.0, 1.31, 1.5)),
        (shift_hue, "hue", (-18, -1, 0, 5, 17)),
    ):
        for amount[0] in amounts:
            expected = getattr(official, name)(bgr.copy())[..., ::-1]
            assert np.array_equal(step(rgb, amount[0]), expected), (name, amount)


def test_photometric_distort_probabilities_and_order():
    image = picture(5)
    grey = np.full((2, 2, 3), (200, 100, 50), dtype=np.uint8)
    results = [SegPhotometricDistort()({"img": grey, "rng": np.random.default_rng(s)})["img"][0, 0] for s in range(400)]
    assert 0.02 < np.mean([np.array_equal(result, (200, 100, 50)) for result in results]) < 0.12  # 1/16
    assert np.mean([result.argmax() == 0 for result in results]) > 0.95  # channels keep their order
    still = SegPhotometricDistort(p=0)({"img": image, "rng": np.random.default_rng(0)})["img"]
    assert np.array_equal(still, image)
    with pytest.raises(UserError, match="hue must be a pair"):
        SegPhotometricDistort(hue=(-100, 100))
    with pytest.raises(UserError, match="hue must be a pair"):
        PhotometricDistort(hue=(-18, 18))


def test_pipeline_depends_on_index_and_seed_only(shapes):
    pipeline = [
        {"type": "mmvit.LoadImage"},
        {"type": "mmvit.LoadSemanticMask"},
        {"type": "mmvit.RandomResize", "scale": (320, 80)},
        {"type": "mmvit.RandomCrop", "size": 64, "cat_max_ratio": 0.75},
        {"type": "mmvit.Flip"},
        {"type": "mmvit.SegPhotometricDistort"},
        {"type": "mmvit.PackSegInputs"},
    ]
    data = SemanticDataset(pipeline=pipeline, **find_semantic(shapes / "ade20k").dataset_args("train"))
    first = [data[(1, seed)] for seed in range(4)]
    np.random.seed(9)
    torch.manual_seed(9)
    again = [data[(1, seed)] for seed in range(4)]
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(first, again))
    assert len({a["inputs"].numpy().tobytes() for a in first}) == 4
    truth = first[0]["data_samples"].gt_sem_seg.data
    assert first[0]["inputs"].dtype == truth.dtype == torch.uint8 and truth.shape[0] == 1
    assert first[0]["inputs"].shape[1:] == truth.shape[1:] and set(truth.unique().tolist()) <= {*range(12), 255}


def test_pack_in_the_test_pipeline_keeps_the_mask_whole(shapes):
    pipeline = [
        LoadImage(),
        Resize((160, 80), keep_ratio=True, interpolation="cv2_bilinear"),
        ResizeToMultiple(32),
        LoadSemanticMask(),
        PackSegInputs(),
    ]
    data = SemanticDataset(pipeline=pipeline, **find_semantic(shapes / "ade20k").dataset_args("val"))
    packed = data[0]
    facts = packed["data_samples"].metainfo
    assert set(facts) == {"img_id", "img_path", "mask_path", "ori_shape", "img_shape", "scale_factor", "flip"}
    assert packed["inputs"].shape[1:] == facts["img_shape"] and not any(side % 32 for side in facts["img_shape"])
    assert packed["data_samples"].gt_sem_seg.data.shape[1:] == facts["ori_shape"] != facts["img_shape"]
    assert facts["img_id"] == "ADE_val_00000001" and facts["mask_path"].endswith("annotations/validation/ADE_val_00000001.png")


def test_test_time_views():
    import mmcv

    before = sample(height=50, width=100)
    image = before["img"].copy()
    after = TestTimeAug(scales=(0.5, 1.0), size=(160, 64), divisor=32)(before)
    assert [(view["img"].shape[:2], view["flip"]) for view in after["views"]] == [
        ((32, 64), False),
        ((32, 64), True),
        ((64, 128), False),
        ((64, 128), True),
    ]
    assert np.array_equal(after["views"][1]["img"], after["views"][0]["img"][:, ::-1])
    assert np.array_equal(after["img"], image) and after["img_shape"] == (50, 100)
    packed = PackSegInputs()(after)
    assert [view.shape for view in packed["inputs"]] == [(3, 32, 64), (3, 32, 64), (3, 64, 128), (3, 64, 128)]
    assert packed["data_samples"].view_flips == [False, True, False, True]
    assert packed["data_samples"].gt_sem_seg.data.shape == (1, 50, 100)
    own = TestTimeAug(scales=(0.75,), flip=False)(sample(height=50, width=101))["views"]
    assert len(own) == 1 and own[0]["img"].shape == mmcv.imrescale(sample(height=50, width=101)["img"], 0.75).shape


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomResize((512,)),
        lambda: RandomResize((512, 0)),
        lambda: RandomResize(512, ratio_range=(0, 1)),
        lambda: RandomResize(512, ratio_range=(2, 1)),
        lambda: RandomCrop((3.5, 4)),
        lambda: RandomCrop(4, cat_max_ratio=0),
        lambda: ResizeToMultiple(0),
        lambda: ResizeToMultiple(32, interpolation="cv2"),
        lambda: TestTimeAug(scales=[]),
        lambda: TestTimeAug(scales=[-1]),
        lambda: TestTimeAug(divisor=1.5),
    ],
)
def test_bad_arguments_are_explained(build):
    with pytest.raises(UserError, match="must"):
        build()


# --- folders -----------------------------------------------------------------------------------------------------------------


def test_shapes_are_made_on_the_spot_beside_those_for_detection(tmp_path, monkeypatch):
    monkeypatch.setattr(semantic_folder_module, "ensure_shapes", functools.partial(ensure_shapes, train=4, val=2))
    files = find_semantic("shapes", data_root=tmp_path)
    assert files.root == tmp_path / "shapes_semantic" / "ade20k" and files.classes == CLASSES
    assert files.mask_format == "reduce_zero" and files.palette is None
    assert [len(SemanticDataset(**files.dataset_args(split))) for split in ("train", "val")] == [4, 2]


@pytest.mark.parametrize("name,remedy", [("ade20k", "ade20k --out"), ("cityscapes", "cityscapes --from DIR --out")])
def test_a_data_set_that_is_not_there(tmp_path, name, remedy):
    with pytest.raises(UserError, match=f"{name}: the data set is not there. Run .python tools/prepare_dataset.py {remedy}"):
        find_semantic(name, data_root=tmp_path)


LAYOUTS = {
    "one for both": (["images/a.jpg"], ["masks/a.png"], "a", "a"),
    "splits within": (["img/train/a.jpg", "img/val/b.jpg"], ["Labels/train/a.png", "Labels/val/b.png"], "a", "b"),
    "splits outside": (
        ["training/images/a.jpg", "validation/images/b.jpg"],
        ["training/masks/a.png", "validation/masks/b.png"],
        "a",
        "b",
    ),
    "test for validation": (["images/train/a.jpg", "images/test/b.jpg"], ["mask/train/a.png", "mask/test/b.png"], "a", "b"),
    "voc": (["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg"], ["SegmentationClass/a.png"], "a", "a"),
    "mask ending": (["images/a.jpg", "images/ab.jpg"], ["masks/a_mask.gif", "masks/ab_mask.gif"], "a", "a"),
    "both endings": (["images/a_rgb.png", "images/b_rgb.png"], ["masks/a_gt.png", "masks/b_gt.png"], "a", "a"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_own_data(tmp_path, name):
    images, masks, train, val = LAYOUTS[name]
    for path in images:
        save(tmp_path / path, picture())
    for path in masks:
        save(tmp_path / path, stripes(0, 1))
    if name == "voc":
        for split in ("train", "val"):
            (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
            (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("a\n")
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    for split, first in (("train", train), ("val", val)):
        data = dataset(tmp_path, split)
        assert data.get_sample(0)["img_id"] == first and data.metainfo["classes"] == ("sky", "road")
        assert np.array_equal(loaded(data)["gt_sem_seg"], stripes(0, 1))
    json.dumps(find_semantic(tmp_path).dataset_args("train"))  # a config can hold it


def test_folders_that_do_not_fit_are_described(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_semantic(tmp_path / "none")
    with pytest.raises(UserError, match=r"no pictures with masks found \(the folder is empty\)(.*\n)*.*classes.txt"):
        find_semantic(tmp_path)
    folder(tmp_path, {"a": stripes(0)}, names=None)
    with pytest.raises(UserError, match=r"no file with the names of the classes. Write .*classes.txt: one name per line"):
        find_semantic(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\n")
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "q.png")
    with pytest.raises(UserError, match=r"no mask has the name of a picture .*masks: q.png.*pictures: a.jpg"):
        find_semantic(tmp_path)
    (tmp_path / "masks" / "q.png").rename(tmp_path / "masks" / "q.txt")
    with pytest.raises(UserError, match=r"masks: holds no pictures \(found: q.txt\)"):
        find_semantic(tmp_path)
    for part in ("images", "masks"):
        save(tmp_path / "half" / part / "train" / "a.png", stripes(0))
    with pytest.raises(UserError, match="only one of training and validation has pictures and masks"):
        find_semantic(tmp_path / "half")
    for part in ("leftImg8bit", "gtFine"):
        (tmp_path / "city" / part / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no masks .*_labelTrainIds.png. Make them with .*prepare_dataset.py cityscapes"):
        find_semantic(tmp_path / "city")


def test_names_files(tmp_path):
    def read(text: str, name: str = "classes.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        return read_names(tmp_path / name)

    assert read("# two\ntraffic light\n\n road \n").classes == ("traffic light", "road")
    coloured = read("traffic light 250 170 30\nroad, 128, 64, 128\nvoid 0 0 0\n")
    assert coloured.classes == ("traffic light", "road") and coloured.palette == ((250, 170, 30), (128, 64, 128))
    assert coloured.ignore_colours == ((0, 0, 0),)
    assert read('["a", "b"]', "classes.json").classes == read('{"1": "b", "0": "a"}', "names.json").classes == ("a", "b")
    for text, name, message in (
        ("sky\nsky\n", "c.txt", "'sky' appears twice"),
        ("\n", "c.txt", "holds no class names"),
        ("sky 1 2 3\nroad\n", "c.txt", "1 of 2 classes have a colour"),
        ("sky 1 2 333\n", "c.txt", "line 1 gives the colour"),
        ('{"1": "a"}', "c.json", "keys are not the numbers 0 to 0"),
        ("[1]", "c.json", "does not hold a list of names"),
        ("[", "c.json", "not valid json"),
    ):
        with pytest.raises(UserError, match=message):
            read(text, name)


# --- the check before training -----------------------------------------------------------------------------------------------


def complaint(root: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        check_masks(dataset(root, **options))
    return str(error.value)


def test_good_masks_pass_once(tmp_path, monkeypatch):
    root = folder(tmp_path / "d", {"a": stripes(0, 1, 2, 255), "b": stripes(1)})
    check_masks(dataset(root), dataset(root, "val"))
    calls = []
    monkeypatch.setattr(mask_check_module, "read_mask", lambda *args: calls.append(args) or read_mask(*args))
    check_masks(dataset(root))
    assert not calls
    check_masks(dataset(root, ignore_index=7))  # another meaning
    assert len(calls) == 2
    os.utime(root / "masks" / "a.png", ns=(1, 1))
    check_masks(dataset(root))
    assert len(calls) == 4
    save(root / "masks" / "a.png", stripes(0, 4))
    assert "a.png: 4" in complaint(root)
    assert "a.png: 4" in complaint(root)  # what failed is not remembered
    monkeypatch.setenv("MMVIT_CACHE", str(root / "classes.txt" / "x"))  # cannot be written
    save(root / "masks" / "a.png", stripes(0, 1))
    check_masks(dataset(root))


def test_values_outside_the_classes_show_a_histogram_and_the_options(tmp_path):
    text = complaint(folder(tmp_path, {"a": stripes(0, 1), "b": stripes(1, 2, 3), "c": stripes(0, 255)}))
    assert "values that are no class" in text and "3 classes (1 file)" in text and "b.png: 3" in text
    assert "--mask-format reduce_zero" in text and "--ignore-index 3" in text and "must have 4 names, not 3" in text
    lines = text.splitlines()
    assert "  0: 600, 2, class 0" in lines and "  3: 180, 1, ?" in lines and "  255: 300, 1, no class" in lines
    check_masks(dataset(tmp_path, mask_format="reduce_zero"))
    check_masks(dataset(tmp_path, ignore_index=3))
    text = complaint(folder(tmp_path, {"a": stripes(0, 17), "b": stripes(30)}))
    assert "must have 31 names" in text and "reduce_zero" not in text and "(2 files)" in text


def test_black_and_white_masks(tmp_path):
    root = folder(tmp_path / "d", {"a": stripes(0, 255), "b": stripes(0)}, "background\nobject\n")
    text = complaint(root)
    assert "black and white (0/255) masks (1 file)" in text and "--mask-format binary" in text and "a.png" in text
    assert "  255: 300, 1, no class" in text
    check_masks(dataset(root, mask_format="binary"))
    blurred = cv2.resize(stripes(0, 255, 0), (30, 20), interpolation=cv2.INTER_LINEAR)
    (tmp_path / "e").mkdir()
    root = folder(tmp_path / "e", {"a.jpg": np.repeat(blurred, 20, axis=1)}, "background\nobject\n", quality=30)
    save(root / "images" / "a.jpg", picture(0, 20, 600))
    text = complaint(root)
    assert "blurred edges" in text and "--mask-format binary" in text and "write masks as PNG" in text
    check_masks(dataset(root, mask_format="binary"))
    root = folder(tmp_path / "f", {"a": stripes(0, 1)}, "background\nobject\n")
    assert "no value is above 1" in complaint(root, mask_format="binary")


def test_rgb_masks(tmp_path):
    red, green = np.array([200, 0, 0], np.uint8), np.array([0, 200, 0], np.uint8)
    values = np.where((stripes(0, 1) == 0)[..., None], red, green)
    text = complaint(folder(tmp_path, {"a": values, "b": stripes(0)}))
    assert "RGB masks (1 file)" in text and "--mask-format rgb" in text and "  200 0 0: 300, 1, ?" in text
    text = complaint(folder(tmp_path, {"a": values, "b": values}, "sky 200 0 0\nroad 9 9 9\n"), mask_format="rgb")
    assert "'ignore red green blue'" in text and "a.png: 0 200 0" in text and "  200 0 0: 600, 2, class 0" in text
    folder(tmp_path, {"a": values}, "sky 200 0 0\nroad 9 9 9\nignore 0 200 0\n")
    data = dataset(tmp_path, mask_format="rgb")
    check_masks(data)
    assert np.array_equal(loaded(data)["gt_sem_seg"], stripes(0, 255))
    text = complaint(folder(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 1)}, "sky 200 0 0\nroad 9 9 9\n"), mask_format="rgb")
    assert "--mask-format index" in text


def test_sizes_and_unreadable_files_are_named(tmp_path):
    root = folder(tmp_path, {name: stripes(0, 1) for name in "abcd"})
    save(root / "masks" / "b.png", stripes(0, height=30, width=20))
    (root / "masks" / "c.png").write_bytes(b"no picture")
    (root / "images" / "d.jpg").write_bytes(b"")
    text = complaint(root)
    assert "another size than their picture (1 file)" in text and "b.png: 20x30, its picture 30x20" in text
    assert "EXIF" in text and "files that cannot be read (2 files)" in text
    assert "c.png is empty or not a picture" in text and "d.jpg cannot be read" in text and "value:" not in text


# --- panoptic ----------------------------------------------------------------------------------------------------------------


def test_semantic_from_panoptic(tmp_path, shapes):
    out = tmp_path / "out"
    args = (shapes / "annotations" / "panoptic_val.json", shapes / "annotations" / "panoptic_val", shapes / "val")
    assert semantic_from_panoptic(*args, out) == CLASSES
    data = dataset(out)
    assert data.metainfo == {"classes": CLASSES, "palette": [tuple(colour) for colour in make_palette(len(CLASSES))]}
    check_masks(data)
    for index in range(3):
        assert np.array_equal(loaded(data, index)["gt_sem_seg"], semantic_map(make_scene(0, "val", index)))
    with pytest.raises(UserError, match="exists already"):
        semantic_from_panoptic(*args, out)


def test_panoptic_errors_name_the_image(tmp_path, shapes):
    source, maps, images = shapes / "annotations" / "panoptic_val.json", shapes / "annotations" / "panoptic_val", shapes / "val"
    content = json.loads(source.read_text())

    def complain(change, maps=maps, images=images) -> str:
        data = json.loads(json.dumps(content))
        change(data)
        (tmp_path / "p.json").write_text(json.dumps(data))
        with pytest.raises(UserError) as error:
            semantic_from_panoptic(tmp_path / "p.json", maps, images, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json"]  # nothing half-made stays
        return str(error.value)

    second = content["annotations"][1]
    assert "image id 2 (000001.jpg)" in complain(lambda d: d["annotations"][1].update(file_name="none.png"))
    assert "none.png does not exist" in complain(lambda d: d["annotations"][1].update(file_name="none.png"))
    text = complain(lambda d: d["annotations"][1]["segments_info"].pop(0))
    assert "image id 2" in text and f"first {second['segments_info'][0]['id']}" in text and "are no segment" in text
    assert "category id 99" in complain(lambda d: d["annotations"][1]["segments_info"][0].update(category_id=99))
    assert "(width x height)" in complain(lambda d: d["images"][1].update(height=7))
    assert "image id 77, which 'images' lacks" in complain(lambda d: d["annotations"][1].update(image_id=77))
    assert "picture" in complain(lambda d: None, images=tmp_path) and "--panoptic-dir" in complain(
        lambda d: None, maps=tmp_path
    )
    assert "'segments_info'" in complain(lambda d: d["annotations"][0].pop("segments_info"))
    assert "'categories'" in complain(lambda d: d.pop("categories"))
    with pytest.raises(UserError, match="no such panoptic file"):
        semantic_from_panoptic(tmp_path / "none.json", maps, images, tmp_path / "out")
