"""Reading pictures of every kind, predicting, drawing, and the predict command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image, ImageFile
from torch import nn

from mmvit.architectures import create_model
from mmvit.cli import run_command
from mmvit.data import COCO_CATEGORY_IDS, COCO_CLASSES, DataSample, PackDetInputs, Resize
from mmvit.data.shapes import write_shapes
from mmvit.engine import assemble, load_config
from mmvit.errors import UserError
from mmvit.inference import Detections, Predictor, command, draw_detections, read_image
from mmvit.inference.labels import Plate, overlap
from mmvit.inference.sources import expand
from mmvit.weights import save_safetensors

Captured = pytest.CaptureFixture[str]

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
EIGHT = np.rint(DEEP / 257).astype(np.uint8)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return rgb * weight + 255 * (1 - weight)


# ---- reading


def test_plain_colour_by_path_bytes_array_and_pil(tmp_path: Path) -> None:
    path = save(Image.fromarray(RGB), tmp_path / "a.png")
    for source in (path, str(path), path.read_bytes(), RGB, Image.fromarray(RGB)):
        image = read_image(source)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "tif", "webp"])
def test_other_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(read_image(save(Image.fromarray(RGB), tmp_path / f"a.{suffix}", **options)), RGB)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(grey), tmp_path / "a.png")), expected)
    bits = save(Image.fromarray(grey > 127), tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(bits), np.where(expected > 127, 255, 0))


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 255
    rgba = np.dstack([RGB, alpha])
    image = read_image(save(Image.fromarray(rgba), tmp_path / "rgba.png"))
    np.testing.assert_allclose(image, on_white(RGB, alpha), atol=1)
    assert image[0, 0].tolist() == [255, 255, 255] and image[0, 1].tolist() == RGB[0, 1].tolist()
    np.testing.assert_allclose(read_image(rgba), on_white(RGB, alpha), atol=1)
    grey = save(Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(alpha)]), tmp_path / "la.png")
    np.testing.assert_allclose(read_image(grey), on_white(RGB[..., :1].repeat(3, 2), alpha), atol=1)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    plain = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert read_image(save(image, tmp_path / "p.png")).tolist() == plain
    plain[0][0] = [255, 255, 255]
    assert read_image(save(image, tmp_path / "t.png", transparency=0)).tolist() == plain


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    path = save(Image.fromarray(DEEP[..., 0]), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), EIGHT[..., :1].repeat(3, 2))
    path = save(Image.fromarray(DEEP[..., 0]), tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(path), EIGHT[..., :1].repeat(3, 2))


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), DEEP[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), EIGHT)
    cv2.imwrite(str(tmp_path / "a.tif"), DEEP[..., ::-1])
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").astype(int), EIGHT, atol=1)  # PIL takes the upper byte


def test_sixteen_bit_colour_with_alpha(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([DEEP[..., ::-1], alpha]))
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), on_white(DEEP / 257, alpha / 257), atol=1.01)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    for cmyk, rgb in (
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ):
        image = read_image(save(Image.new("CMYK", (16, 16), cmyk), tmp_path / "a.jpg", quality=100))
        np.testing.assert_allclose(image, np.broadcast_to(rgb, (16, 16, 3)), atol=3)
    np.testing.assert_allclose(image[0, 0], [255] * 3, atol=3)  # Adobe's inverted values, as PIL writes them
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()


ORIENTED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, deep: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)
    if deep:
        path.write_bytes(with_exif_of(path.read_bytes(), cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes()))
    np.testing.assert_array_equal(read_image(path), ORIENTED[orientation](EIGHT if deep else RGB))


def with_exif_of(donor: bytes, png: bytes) -> bytes:
    """`png` with the eXIf chunk of `donor`, right behind its header."""
    start = donor.index(b"eXIf") - 4
    length = int.from_bytes(donor[start : start + 4], "big") + 12
    return png[:33] + donor[start : start + length] + png[33:]


def test_one_pixel_high_and_wide(tmp_path: Path) -> None:
    assert read_image(save(Image.fromarray(RGB[:1]), tmp_path / "a.png")).shape == (1, 7, 3)
    assert read_image(save(Image.fromarray(RGB[:, :1]), tmp_path / "b.png")).shape == (5, 1, 3)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.unique(read_image(path).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_float_tiff(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "rgb.tif"), (RGB[..., ::-1] / 255).astype(np.float32), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.tif"), RGB)
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(values), tmp_path / "a.tif"))[..., 0], np.rint(values * 255))
    with pytest.raises(UserError, match="b.tif has floats from 0 to 255"):
        read_image(save(Image.fromarray(values * 255), tmp_path / "b.tif"))


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 65535, 128, 129]], np.uint16), [0, 255, 0, 1]),
        (np.array([[0.0, 1.0, 0.5]]), [0, 255, 128]),
        (np.array([[True, False]]), [255, 0]),
    ],
)
def test_arrays_of_other_types(values: np.ndarray, expected: list[int]) -> None:
    assert read_image(values)[0, :, 1].tolist() == expected


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros(5), "shape"),
        (np.full((2, 2), np.nan), "floats from nan"),
        (np.full((2, 2), 200.0), "floats from 200"),
        (np.zeros((2, 2), np.int64), "dtype int64"),
    ],
)
def test_arrays_that_are_no_pictures(values: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_image(values)


def truncated(path: Path) -> None:
    with pytest.raises(UserError, match=f"{path}.*damaged") as error:
        read_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_truncated_files_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = save(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    truncated(path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some libraries do
    truncated(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_truncated_deep_files_are_errors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    truncated(path)


def test_files_that_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name, message in (
        ("empty.jpg", "is empty"),
        ("text.jpg", "is not a picture"),
        ("absent.jpg", "does not exist"),
        ("", "is a folder"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path / name} {message}"):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="bomb.png is too large"):
        read_image(save(Image.fromarray(RGB), tmp_path / "bomb.png"))
    with pytest.raises(UserError, match="cannot read a picture from int"):
        read_image(3)


# ---- predicting


class Fixed(nn.Module):
    """Follows the model contract: remembers its inputs and finds two objects at fixed places of the network input."""

    num_classes, task, eval_resize = 80, "detection", {"size": (32, 64)}

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[torch.Tensor]] = []

    def test_step(self, data: dict) -> list[DataSample]:
        from mmengine.structures import InstanceData

        self.batches.append(data["inputs"])
        for sample in data["data_samples"]:
            scale = torch.tensor(sample.scale_factor * 2)
            boxes = torch.tensor([[8.0, 4, 16, 8], [0, 0, 64, 32]]) / scale
            sample.pred_instances = InstanceData(bboxes=boxes, scores=torch.tensor([0.3, 0.8]), labels=torch.tensor([17, 0]))
        return data["data_samples"]


def test_predictor_gives_boxes_in_pixels_of_the_picture_best_first() -> None:
    predictor = Predictor(Fixed(), device="cpu", batch_size=2)
    first, second, third = predictor([np.zeros((64, 64, 3), np.uint8), np.zeros((1, 128), np.uint8), RGB])
    assert [len(batch) for batch in predictor.model.batches] == [2, 1]
    assert predictor.model.batches[0][1].shape == (3, 32, 64) and predictor.model.batches[0][1].dtype == torch.uint8
    np.testing.assert_allclose(first.boxes, [[0, 0, 64, 64], [8, 8, 16, 16]])
    np.testing.assert_allclose(second.boxes, [[0, 0, 128, 1], [16, 0.125, 32, 0.25]])
    assert first.names == ["person", "horse"] and first.image_size == (64, 64) and third.image_size == (5, 7)
    assert (first.boxes.dtype, first.scores.dtype, first.labels.dtype) == (np.float32, np.float32, np.int64)


def test_detections_filter_and_coco() -> None:
    found = Predictor(Fixed(), device="cpu")(np.zeros((64, 64), np.uint8))
    assert len(found) == 1
    assert found[0].to_coco(42)[1] == {
        "image_id": 42,
        "category_id": 19,
        "category_name": "horse",
        "bbox": [8.0, 8.0, 8.0, 8.0],
        "score": 0.3,
    }
    assert found[0].filter(0.5).names == ["person"] and len(found[0].filter(0.9)) == 0 and found[0].filter(0.9).to_coco(1) == []
    assert len(Predictor(Fixed(), device="cpu", score_thr=0.5)(RGB)[0]) == 1
    own = Detections(found[0].boxes, found[0].scores, np.array([0, 2]), ("a", "b", "c"), (64, 64))
    assert [one["category_id"] for one in own.to_coco(1)] == [1, 3]
    assert found[0].cat_ids == COCO_CATEGORY_IDS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    meta = {"dataset_meta": {"classes": ["cat", "dog", "owl"], "cat_ids": [2, 4, 8]}}
    save_safetensors(path, create_model("rtdetr_debug", num_classes=3).state_dict(), meta)
    return path


def test_predictor_on_a_network_equals_the_test_pipeline(checkpoint: Path) -> None:
    picture = RNG.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    predictor = Predictor("rtdetr_debug", checkpoint=checkpoint, device="cpu")
    found = predictor(picture)[0]
    sample = {"img": picture, "img_id": 0, "img_path": "", "ori_shape": (50, 90), "img_shape": (50, 90)}
    packed = PackDetInputs()(Resize((64, 64))(sample))
    batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
    expected = predictor.model.test_step(batch)[0].pred_instances
    np.testing.assert_array_equal(found.scores, expected.scores.numpy())
    np.testing.assert_array_equal(found.boxes, expected.bboxes.numpy())
    assert found.classes == ("cat", "dog", "owl") and {one["category_id"] for one in found.to_coco(1)} <= {2, 4, 8}
    assert len(found) == 30  # 10 queries x 3 classes


def test_deploy_gives_the_same_detections(checkpoint: Path) -> None:
    picture = RNG.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    plain, folded = (
        Predictor("rtdetr_debug", checkpoint=checkpoint, device="cpu", deploy=deploy)(picture)[0] for deploy in (False, True)
    )
    np.testing.assert_allclose(plain.scores, folded.scores, atol=1e-4)


def test_batches_change_nothing(checkpoint: Path) -> None:
    pictures = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((50, 90), (64, 64), (1, 300))]
    one, three = (Predictor("rtdetr_debug", checkpoint=checkpoint, device="cpu", batch_size=size)(pictures) for size in (1, 3))
    for a, b in zip(one, three):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


@pytest.fixture(scope="module")
def run_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training run with ``--data`` and ``--size 96`` leaves behind."""
    folder = tmp_path_factory.mktemp("run")
    write_shapes(folder / "data", train=2, val=2, layouts=("coco",))
    config = Path(__file__).parents[1] / "configs" / "rtdetr_shapes.py"
    cfg = assemble(load_config(config), data=folder / "data", size=96, options=["model.arch=debug"])
    classes = cfg.test_dataloader.dataset.classes
    dataset_meta = {"classes": list(classes), "cat_ids": [10 * i for i in range(len(classes))]}
    meta = {"cfg": cfg.pretty_text, "dataset_meta": dataset_meta}
    torch.save({"meta": meta, "state_dict": build(cfg).state_dict()}, folder / "best.pth")
    return folder / "best.pth"


def build(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    return create_model("rtdetr_debug", num_classes=cfg.model.num_classes)


def test_a_checkpoint_of_a_run_says_model_classes_and_size(run_checkpoint: Path, tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    predictor = Predictor(checkpoint=run_checkpoint, device="cpu")
    assert predictor.steps[0].size == (96, 96) and predictor.model.arch == "debug" and len(predictor.classes) > 3
    found = predictor(picture)[0]
    assert {one["category_id"] % 10 for one in found.to_coco(1)} == {0}
    (tmp_path / "mine.py").write_text("model = dict(type='RTDETR', arch='debug', backbone_pretrained=True)")
    for arguments in ({"model": "rtdetr_debug"}, {"config": tmp_path / "mine.py"}):
        other = Predictor(checkpoint=run_checkpoint, device="cpu", **arguments)
        assert other.steps[0].size == (96, 96) and other.classes == predictor.classes
        np.testing.assert_array_equal(other(picture)[0].boxes, found.boxes)


@pytest.mark.parametrize(
    "text, message",
    [
        ("model = __import__('os').mkdir('harm')", "does not say what model"),
        ("model = dict(type='subprocess.Popen', args=['ls'])", "'subprocess.Popen' that mmvit does not have"),
        ("model = dict(type='RTDETR', arch='debug', neck=dict(type='os.system'))", "'os.system' that mmvit does not have"),
        ("model = dict(type='RTDETR', arch='debug', old=1)", "cannot be built"),
        ("model = (", "does not say what model"),
    ],
)
def test_a_recorded_config_is_data_not_code(
    run_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(run_checkpoint, weights_only=True)
    checkpoint["meta"]["cfg"] = text
    torch.save(checkpoint, "evil.pth")
    with pytest.raises(UserError, match=message):
        Predictor(checkpoint="evil.pth", device="cpu")
    assert not Path("harm").exists()


def test_keeping_the_aspect_ratio(run_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run_checkpoint, weights_only=True)
    checkpoint["meta"]["cfg"] = (
        "model = dict(type='RTDETR', arch='debug')\n"
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', size=(64, 96), keep_ratio=True)]))"
    )
    torch.save(checkpoint, tmp_path / "ratio.pth")
    predictor = Predictor(checkpoint=tmp_path / "ratio.pth", device="cpu", batch_size=2)
    pictures = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((50, 90), (90, 50))]
    both = predictor(pictures)
    for picture, found in zip(pictures, both):
        np.testing.assert_array_equal(predictor(picture)[0].boxes, found.boxes)


def test_predictor_errors(checkpoint: Path) -> None:
    for arguments, message in (
        ({"model": "rtdetr_r5O"}, "no model 'rtdetr_r5O'.*Did you mean 'rtdetr_r50'"),
        ({"model": "rtdetr_debug"}, "no published weights for 'rtdetr_debug'"),
        ({"model": "rtdetr_r18", "checkpoint": "absent.pth"}, "absent.pth does not exist"),
        ({"model": "rtdetr_r18", "checkpoint": checkpoint}, "does not fit"),
        ({"config": "x.py"}, "x.py.*checkpoint"),
        ({"config": "x.py", "model": "rtdetr_r50"}, "both a config"),
        ({"config": "x.py", "checkpoint": checkpoint}, "no config x.py"),
        ({"checkpoint": checkpoint}, "does not say what model it is"),
        ({"model": Fixed(), "device": "cuda:77"}, "'cuda:77' is absent"),
        ({"model": Fixed(), "device": "gpu"}, "unknown device"),
        ({"model": Fixed(), "batch_size": 0}, "batch_size"),
        ({"model": Fixed(), "classes": ["a", "b"]}, "2 class names .* 80 classes"),
    ):
        with pytest.raises(UserError, match=message):
            Predictor(**arguments)


# ---- drawing


def detections(boxes: list[list[float]], size: tuple[int, int]) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.arange(count),
        COCO_CLASSES,
        size,
    )


def test_drawing_marks_the_box_and_leaves_the_input_alone() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    drawn = draw_detections(image, detections([[50, 60, 250, 180]], (200, 300)))
    assert (image == 128).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    red, grey = drawn[120, 50].astype(int), drawn[120, 150]
    assert red[0] > 200 and red[1] < 60 and grey.tolist() == [128] * 3  # the first class is red in RGB
    np.testing.assert_array_equal(drawn, draw_detections(image, detections([[50, 60, 250, 180]], (200, 300))))
    np.testing.assert_array_equal(draw_detections(image, detections([], (200, 300))), image)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (30, 30)])
def test_drawing_on_tiny_pictures_and_boxes_outside(size: tuple[int, int]) -> None:
    drawn = draw_detections(np.zeros((*size, 3), np.uint8), detections([[-50, -50, 1000, 1000], [0, 0, 0, 0]], size))
    assert drawn.shape == (*size, 3) and drawn.any()


def test_labels_stay_inside_and_off_each_other() -> None:
    shape, taken = (400, 600), []
    corner, middle = (0, 0, 80, 40), (300, 200, 380, 260)
    for box in (corner, (520, 0, 599, 40), (520, 360, 599, 399), corner, middle, middle):
        plate = Plate("person 90%", shape)
        plate.place(box, taken)
        x1, y1, x2, y2 = plate.rectangle
        assert 0 <= x1 < x2 <= 600 and 0 <= y1 < y2 <= 400
        assert not any(overlap(plate.rectangle, other) for other in taken)
        taken.append(plate.rectangle)


def test_letters_and_lines_grow_with_the_picture() -> None:
    assert Plate("a", (4000, 6000)).size[1] > 2 * Plate("a", (400, 600)).size[1]


# ---- sources


def test_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "a/2.PNG", "a/note.txt", "a/.hidden.jpg", "a/b/3.jpg", "c/film.mp4", "odd [1].jpg", "empty/x.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)

    def names(*words: str) -> list[str]:
        sources = expand(words)
        assert all(source.error is None for source in sources)
        return [source.path.as_posix() for source in sources]

    assert names("a") == ["a/1.jpg", "a/2.PNG"]
    assert names("a/**/*.jpg") == ["a/1.jpg", "a/b/3.jpg"]
    assert names("a/1.jpg", "./a/1.jpg", "a", str(tmp_path / "a" / "1.jpg")) == ["a/1.jpg", "a/2.PNG"]
    assert names("odd [1].jpg") == ["odd [1].jpg"]
    assert names("a/note.txt") == ["a/note.txt"]
    assert expand(["c"])[0].is_video
    for word, message in (("absent.jpg", "does not exist"), ("*.bmp", "no file matches"), ("empty", "no pictures or videos")):
        assert message in expand([word])[0].error


# ---- command


def predict(*words: object, checkpoint: Path, out: Path) -> int:
    argv = [
        *map(str, words),
        "--model",
        "rtdetr_debug",
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--score-thr",
        "0",
    ]
    return run_command(command.add_arguments, command.run, "predict", argv)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "other").mkdir(parents=True)
    for name in ("000000000042.jpg", "a.png", "other/a.jpg"):
        Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_command_draws_and_writes_coco_json(pictures: Path, tmp_path: Path, checkpoint: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert predict(pictures, pictures / "other", "--batch-size", 2, checkpoint=checkpoint, out=out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["000000000042.jpg", "a.jpg", "a_2.jpg", "predictions.json"]
    assert read_image(out / "a.jpg").shape == (40, 60, 3)
    results = json.loads((out / "predictions.json").read_text())
    assert {(one["image_id"], one["file_name"]) for one in results} == {
        (42, str(pictures / "000000000042.jpg")),
        (1, str(pictures / "a.png")),
        (2, str(pictures / "other/a.jpg")),
    }
    assert set(results[0]) == {"image_id", "file_name", "category_id", "category_name", "bbox", "score"}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "a.png: 30 objects (" in lines[1] and str(out / "predictions.json") in lines[3]


def test_command_goes_on_after_bad_inputs(pictures: Path, tmp_path: Path, checkpoint: Path, capsys: Captured) -> None:
    (pictures / "bad.jpg").write_bytes(b"no picture")
    (pictures / "cut.jpg").write_bytes((pictures / "000000000042.jpg").read_bytes()[:900])
    assert predict(pictures, tmp_path / "absent.jpg", checkpoint=checkpoint, out=tmp_path / "out") == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(any(name in line for line in errors) for name in ("bad.jpg", "cut.jpg", "absent.jpg"))
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 60
    assert predict(tmp_path / "absent.jpg", checkpoint=checkpoint, out=tmp_path / "nothing") == 1
    assert not (tmp_path / "nothing").exists()


def test_command_keeps_what_is_done_when_it_breaks_off(
    pictures: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    forward, calls = Predictor._forward, []

    def once(self: Predictor, packed: list) -> list:
        calls.append(1)
        if len(calls) > 1:
            raise UserError("out of memory")
        return forward(self, packed)

    monkeypatch.setattr(Predictor, "_forward", once)
    assert predict(pictures, checkpoint=checkpoint, out=tmp_path / "out") == 2
    assert "error: out of memory" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 30


def test_command_never_overwrites_an_input(pictures: Path, checkpoint: Path) -> None:
    before = (pictures / "000000000042.jpg").read_bytes()
    assert predict(pictures, checkpoint=checkpoint, out=pictures) == 0
    assert (pictures / "000000000042.jpg").read_bytes() == before and (pictures / "000000000042_2.jpg").exists()


def test_command_json_on_stdout(pictures: Path, tmp_path: Path, checkpoint: Path, capsys: Captured) -> None:
    assert predict(pictures / "a.png", "--json", checkpoint=checkpoint, out=tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "30 objects" in captured.err


def test_command_refuses_what_makes_no_sense(pictures: Path, tmp_path: Path, checkpoint: Path, capsys: Captured) -> None:
    assert predict(pictures, "--score-thr", 2, "--config", "x.py", checkpoint=checkpoint, out=tmp_path / "out") == 2
    (tmp_path / "file").write_text("")
    assert predict(pictures, checkpoint=checkpoint, out=tmp_path / "file") == 2
    assert "--out" in capsys.readouterr().err


def test_command_on_a_video(tmp_path: Path, checkpoint: Path, capsys: Captured) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for shade in range(5):
        writer.write(np.full((48, 64, 3), shade * 50, np.uint8))
    writer.release()
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    assert predict(film, tmp_path / "broken.mp4", "--batch-size", 2, checkpoint=checkpoint, out=tmp_path / "out") == 1
    assert "broken.mp4 cannot be opened" in capsys.readouterr().err
    listing = json.loads((tmp_path / "out" / "film.json").read_text())
    assert listing["fps"] == 10 and [frame["frame"] for frame in listing["frames"]] == [0, 1, 2, 3, 4]
    assert listing["frames"][3]["seconds"] == 0.3 and listing["frames"][3]["detections"]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and capture.get(cv2.CAP_PROP_FRAME_WIDTH) == 64


def test_demo_script_without_network(tmp_path: Path, pictures: Path) -> None:
    demo = Path(__file__).parents[1] / "demo" / "image_demo.py"
    environment = {**os.environ, "MMVIT_CACHE": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, demo, pictures / "a.png", "--out", tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "rtdetr_r50vd_6x_coco_from_paddle.pth" in errors[0] and "--model rtdetr_shapes" in errors[0]
