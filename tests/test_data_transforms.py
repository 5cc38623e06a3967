"""Transforms: boxes and masks stay on the pixels they describe; the augmentations do what torchvision's do."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from mmvit.data import (
    Flip,
    IoUCrop,
    LoadAnnotations,
    LoadImage,
    PackDetInputs,
    PhotometricDistort,
    Resize,
    SanitizeBoxes,
    ZoomOut,
)
from mmvit.data.transforms import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from mmvit.errors import UserError

MARK = (255, 40, 200)


def painted(boxes: list, height: int = 90, width: int = 120, seed: int = 0) -> dict:
    """A dark noisy picture with a rectangle of its own brightness painted for each integer box."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 30, (height, width, 3), dtype=np.uint8)
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = MARK
        masks[k, y1:y2, x1:x2] = True
    return {
        "img": image,
        "rng": rng,
        "img_shape": (height, width),
        "ori_shape": (height, width),
        "scale_factor": (1.0, 1.0),
        "flip": False,
        "img_id": 1,
        "img_path": "x.jpg",
        "gt_bboxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "gt_labels": np.arange(len(boxes)),
        "gt_masks": masks,
    }


def extent(pixels: np.ndarray) -> np.ndarray:
    """xyxy box of the true pixels."""
    rows, columns = np.nonzero(pixels)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float32)


def marked(image: np.ndarray) -> np.ndarray:
    return image[..., 0] > 140


GEOMETRIC = {
    "zoom": [ZoomOut(p=1)],
    "crop": [IoUCrop(p=1), SanitizeBoxes()],
    "flip": [Flip(p=1)],
    "stretch": [Resize((160, 100))],
    "shrink": [Resize((45, 50))],
    "keep": [Resize((200, 200), keep_ratio=True)],
    "all": [ZoomOut(), IoUCrop(), SanitizeBoxes(), Flip(), Resize((128, 128))],
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_box_and_mask_follow_the_pixels(name):
    kept = 0
    for seed in range(25):
        corner = np.random.default_rng(seed).integers(0, 50, 2).tolist()
        sample = painted([(*corner, corner[0] + 40, corner[1] + 30)], seed=seed)
        for transform in GEOMETRIC[name]:
            sample = transform(sample)
        assert sample["img"].shape[:2] == tuple(sample["img_shape"]) == sample["gt_masks"].shape[1:]
        assert len(sample["gt_bboxes"]) == len(sample["gt_labels"]) == len(sample["gt_masks"])
        if not len(sample["gt_bboxes"]):
            continue
        kept += 1
        box = sample["gt_bboxes"][0]
        assert np.abs(box - extent(marked(sample["img"]))).max() <= 1.0
        assert np.abs(box - extent(sample["gt_masks"][0])).max() <= 1.0
        assert box.min() >= 0 and (box[2:] <= sample["img"].shape[1::-1]).all()
    assert kept >= 20


def test_labels_and_masks_stay_with_their_box():
    boxes = [(2, 2, 20, 20), (30, 10, 60, 50), (70, 40, 118, 88), (5, 60, 25, 85)]
    dropped = 0
    for seed in range(30):
        sample = painted(boxes, seed=seed)
        sample = IoUCrop(p=1)(sample)
        dropped += len(boxes) - len(sample["gt_labels"])
        assert len(sample["gt_labels"]) >= 1
        for box, label, mask in zip(sample["gt_bboxes"], sample["gt_labels"], sample["gt_masks"]):
            assert np.abs(box - extent(mask)).max() < 1e-4
            full = np.array(boxes[label], dtype=float)
            assert mask.sum() <= (full[2] - full[0]) * (full[3] - full[1])
            assert (box[2:] - box[:2] <= full[2:] - full[:2]).all()
    assert dropped > 0


def test_zoom_out_range_fill_and_place():
    factors = []
    for seed in range(60):
        sample = ZoomOut(p=1, side_range=(1, 4), fill=7)(painted([(10, 10, 60, 60)], seed=seed))
        height, width = sample["img"].shape[:2]
        factors.append(width / 120)
        assert abs(height / 90 - width / 120) < 0.02
        x, y = (sample["gt_bboxes"][0, :2] - 10).astype(int)
        outside = np.ones((height, width), dtype=bool)
        outside[y : y + 90, x : x + 120] = False
        assert (sample["img"][outside] == 7).all()
    assert 1 <= min(factors) < 1.5 and 3.5 < max(factors) <= 4


def test_probabilities():
    def share(transform, changed):
        return np.mean([changed(transform(painted([(10, 10, 60, 60)], seed=seed))) for seed in range(300)])

    assert abs(share(Flip(0.5), lambda s: s["flip"]) - 0.5) < 0.1
    assert abs(share(ZoomOut(0.5), lambda s: s["img"].shape[0] > 90) - 0.5) < 0.1
    assert share(IoUCrop(0.0), lambda s: s["img"].shape[0] < 90) == 0
    # one option in seven (and p = 0.8) leaves the picture whole: at most 0.8 * 6/7 of the pictures are cropped
    assert 0.5 < share(IoUCrop(0.8), lambda s: s["img"].shape[:2] != (90, 120)) < 0.78


def test_iou_crop_keeps_its_promises():
    boxes = [(2, 2, 20, 20), (30, 10, 60, 50), (70, 40, 118, 88)]
    for least in (0.0, 0.3, 0.7):
        cropped = 0
        for seed in range(20):
            before = painted(boxes, seed=seed)
            image = before["img"].copy()
            crop = IoUCrop(p=1, options=(least, 1.0))._find_crop(
                image.shape, before["gt_bboxes"], least, np.random.default_rng(seed)
            )
            if crop is None:
                continue
            cropped += 1
            left, top, right, bottom = crop
            assert 0 <= left < right <= 120 and 0 <= top < bottom <= 90
            width, height = right - left, bottom - top
            assert int(0.3 * 120) <= width and int(0.3 * 90) <= height and 0.5 <= width / height <= 2
            ious, centred = [], []
            for x1, y1, x2, y2 in boxes:
                inter = max(0, min(right, x2) - max(left, x1)) * max(0, min(bottom, y2) - max(top, y1))
                ious.append(inter / (width * height + (x2 - x1) * (y2 - y1) - inter))
                centred.append(left < (x1 + x2) / 2 < right and top < (y1 + y2) / 2 < bottom)
            assert max(iou for iou, inside in zip(ious, centred) if inside) >= least
        assert cropped > 0 or least == 0.7


@pytest.mark.parametrize(
    "transform", [IoUCrop(p=1), ZoomOut(p=1), SanitizeBoxes(), Flip(p=1), Resize(64), PhotometricDistort()]
)
def test_pictures_without_boxes_and_of_one_pixel(transform):
    empty = transform(painted([]))
    assert empty["gt_bboxes"].shape == (0, 4) and len(empty["gt_labels"]) == 0 and empty["gt_masks"].shape[0] == 0
    tiny = transform(painted([(0, 0, 1, 1)], height=1, width=1))
    assert min(tiny["img"].shape[:2]) >= 1


def test_sanitize_clips_and_drops():
    sample = painted([(0, 0, 10, 10)] * 4)
    sample["gt_bboxes"] = np.array(
        [[-5, -5, 20, 20], [10, 10, 10.5, 50], [200, 5, 230, 40], [100, 80, 200, 200]], dtype=np.float32
    )
    sample = SanitizeBoxes(min_size=1)(sample)
    assert sample["gt_labels"].tolist() == [0, 3]
    assert sample["gt_bboxes"].tolist() == [[0, 0, 20, 20], [100, 80, 120, 90]]


def test_resize_is_pillow_bilinear_and_tracks_scale():
    sample = painted([(10, 10, 60, 60)])
    expected = np.asarray(Image.fromarray(sample["img"]).resize((64, 48), Image.BILINEAR))
    sample = Resize((48, 64))(sample)
    assert np.array_equal(sample["img"], expected)
    assert sample["scale_factor"] == (64 / 120, 48 / 90) and sample["ori_shape"] == (90, 120)
    sample = Resize((90, 120))(sample)
    assert np.allclose(sample["scale_factor"], 1.0) and np.allclose(sample["gt_bboxes"], [[10, 10, 60, 60]], atol=1e-3)


def test_photometric_steps_against_plain_arithmetic():
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    wide = image.astype(float)
    grey = wide @ [0.299, 0.587, 0.114]
    assert np.abs(adjust_brightness(image, 1.1) - np.clip(wide * 1.1, 0, 255)).max() <= 0.5
    contrast = np.clip(0.6 * wide + 0.4 * grey.mean(), 0, 255)
    assert np.abs(adjust_contrast(image, 0.6) - contrast).max() <= 1.01
    saturation = np.clip(1.4 * wide - 0.4 * grey[..., None], 0, 255)
    assert np.abs(adjust_saturation(image, 1.4) - saturation).max() <= 1.01


@pytest.mark.parametrize("turn", [-0.05, -0.02, 0.0, 0.03, 0.05, 0.5])
def test_hue_against_colorsys(turn):
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def shifted(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255

    expected = np.apply_along_axis(shifted, 2, image)
    assert np.abs(adjust_hue(image, turn) - expected).max() <= 0.51


def test_photometric_distort_draws_each_part_with_p():
    image = np.full((4, 4, 3), (200, 100, 50), dtype=np.uint8)
    results = [PhotometricDistort(0.5)({"img": image, "rng": np.random.default_rng(seed)})["img"][0, 0] for seed in range(400)]
    unchanged = np.mean([np.array_equal(result, (200, 100, 50)) for result in results])
    assert 0.005 < unchanged < 0.09  # 1/32, and a permutation may be the identity
    permuted = np.mean([result.argmax() != 0 for result in results])
    assert 0.22 < permuted < 0.45  # 1/2 * 2/3
    assert np.array_equal(PhotometricDistort(0.0)({"img": image, "rng": np.random.default_rng(0)})["img"], image)


def test_random_transforms_draw_from_the_sample_only():
    def run():
        sample = painted([(10, 10, 60, 60), (70, 30, 110, 80)], seed=5)
        for transform in (PhotometricDistort(), ZoomOut(), IoUCrop(), SanitizeBoxes(), Flip(), Resize(64)):
            sample = transform(sample)
        return sample

    first = run()
    np.random.seed(99)
    torch.manual_seed(99)
    second = run()
    assert np.array_equal(first["img"], second["img"]) and np.array_equal(first["gt_bboxes"], second["gt_bboxes"])


def test_pack_gives_the_contract():
    packed = PackDetInputs()(Flip(1.0)(painted([(10, 10, 60, 60)])))
    assert packed["inputs"].dtype == torch.uint8 and packed["inputs"].shape == (3, 90, 120)
    truth = packed["data_samples"].gt_instances
    assert truth.bboxes.dtype == torch.float32 and truth.bboxes.tolist() == [[60, 10, 110, 60]]
    assert truth.labels.dtype == torch.int64 and truth.masks.dtype == torch.bool and truth.masks.shape == (1, 90, 120)
    assert set(packed["data_samples"].metainfo) == {"img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip"}
    assert packed["inputs"][0].numpy()[10, 105] == MARK[0]  # RGB


def write_image(path, mode="RGB", size=(12, 8), value=None):
    Image.new(mode, size, value).save(path)
    return str(path)


def test_load_image_modes(tmp_path):
    colours = {"RGB": (10, 20, 30), "L": 77, "RGBA": (10, 20, 30, 128), "LA": (77, 9), "1": 1}
    expected = {"RGB": (10, 20, 30), "L": (77,) * 3, "RGBA": (132, 137, 142), "LA": (249,) * 3, "1": (255,) * 3}
    for mode, value in colours.items():
        sample = LoadImage()({"img_path": write_image(tmp_path / f"{mode}.png", mode, value=value)})
        assert sample["img"].shape == (8, 12, 3) and sample["img"].dtype == np.uint8
        assert tuple(sample["img"][0, 0]) == expected[mode]
        assert sample["ori_shape"] == (8, 12)
    Image.fromarray(np.full((8, 12), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert LoadImage()({"img_path": str(tmp_path / "deep.png")})["img"][0, 0].tolist() == [156] * 3
    cmyk = LoadImage()({"img_path": write_image(tmp_path / "c.jpg", "CMYK", value=(0, 255, 255, 0))})["img"]
    assert cmyk[0, 0, 0] > 200 and cmyk[0, 0, 1] < 60


def test_load_image_ignores_exif_rotation(tmp_path):
    image = Image.new("RGB", (12, 8), (1, 2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert LoadImage()({"img_path": str(tmp_path / "turned.jpg")})["img"].shape == (8, 12, 3)


def test_load_image_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.jpg does not exist"):
        LoadImage()({"img_path": str(tmp_path / "none.jpg")})
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"text\.jpg is not a picture"):
        LoadImage()({"img_path": str(tmp_path / "text.jpg")})
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    with pytest.raises(UserError, match=r"cut\.jpg is damaged or truncated"):
        LoadImage()({"img_path": str(tmp_path / "cut.jpg")})
    path = write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: the picture is 12x8 pixels, but a\.json says 12x9 .*image id 5"):
        LoadImage()({"img_path": path, "height": 9, "width": 12, "img_id": 5, "ann_file": "a.json"})
    with pytest.raises(UserError, match="swapped.*EXIF"):
        LoadImage()({"img_path": path, "height": 12, "width": 8, "img_id": 5, "ann_file": "a.json"})


def test_load_annotations_decodes_every_segmentation_form():
    square = [2.0, 1.0, 7.0, 1.0, 7.0, 5.0, 2.0, 5.0]
    from pycocotools import mask as mask_tools

    mask = np.zeros((8, 10), dtype=np.uint8)
    mask[1:5, 2:7] = 1
    compressed = mask_tools.encode(np.asfortranarray(mask))
    plain = {"size": [8, 10], "counts": [17, *[4, 4] * 4, 4, 80 - 17 - 4 * 9]}
    text = {"size": [8, 10], "counts": compressed["counts"].decode()}
    instances = [
        {"bbox": [2, 1, 7, 5], "label": k, "segmentation": s} for k, s in enumerate(([square], compressed, plain, text))
    ]
    sample = LoadAnnotations(with_mask=True)({"instances": instances, "ori_shape": (8, 10)})
    assert sample["gt_labels"].tolist() == [0, 1, 2, 3] and sample["gt_bboxes"].dtype == np.float32
    for decoded in sample["gt_masks"]:
        assert np.array_equal(decoded, mask.astype(bool))
    for bad in (None, [], {"size": [3, 3], "counts": [9]}, "x"):
        broken = {
            "instances": [{"bbox": [0, 0, 1, 1], "label": 0, "segmentation": bad, "ann_id": 4}],
            "ori_shape": (8, 10),
            "ann_file": "f.json",
        }
        with pytest.raises(UserError, match="f.json: 'segmentation' of annotation id 4"):
            LoadAnnotations(with_mask=True)(broken)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Flip(1.5),
        lambda: ZoomOut(side_range=(0.5, 2)),
        lambda: ZoomOut(side_range=(3, 2)),
        lambda: ZoomOut(fill=300),
        lambda: IoUCrop(options=(0.1, 0.5)),
        lambda: IoUCrop(trials=0),
        lambda: IoUCrop(min_scale=0.8, max_scale=0.5),
        lambda: Resize((640,)),
        lambda: Resize((0, 640)),
        lambda: Resize(640, interpolation="lanczos9"),
        lambda: SanitizeBoxes(0),
        lambda: PhotometricDistort(hue=(-1, 1)),
        lambda: PhotometricDistort(contrast=(-1, 1)),
        lambda: Flip("yes"),
    ],
)
def test_bad_arguments_are_explained(build):
    with pytest.raises(UserError, match="must"):
        build()
