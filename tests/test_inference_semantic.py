"""Segmenting pictures: the predictor, its drawing, and the predict command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from PIL import Image
from torch import nn

from mmvit.architectures import create_model
from mmvit.cli import run_command
from mmvit.data import (
    ADE20K_CLASSES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    DataSample,
    PackSegInputs,
    Resize,
    ResizeToMultiple,
    TestTimeAug,
    palette_for,
    read_image,
)
from mmvit.errors import UserError
from mmvit.inference import Predictor, Segmentation, command, draw_segmentation
from mmvit.inference.draw import percent
from mmvit.weights import save_safetensors

RNG = np.random.default_rng(0)
NAMES = ("sky", "road", "car", "tree", "wall")
COLOURS = [(70, 130, 180), (128, 64, 128), (0, 0, 142), (107, 142, 35), (102, 102, 156)]


class Halves(nn.Module):
    """Follows the model contract: the left half of every picture is class 2, the right half class 0."""

    task, eval_resize = "semantic", {"size": (32, 64), "keep_ratio": True}

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batches: list[list] = []

    def test_step(self, data: dict) -> list[DataSample]:
        self.batches.append(data["inputs"])
        dtype = torch.uint8 if self.num_classes <= 255 else torch.int16
        for sample in data["data_samples"]:
            mask = torch.zeros(1, *sample.ori_shape, dtype=dtype)
            mask[..., : sample.ori_shape[1] // 2] = self.num_classes - 1
            sample.pred_sem_seg = PixelData(data=mask)
        return data["data_samples"]


# ---- predicting


def test_predictor_gives_a_class_for_each_pixel_of_the_picture() -> None:
    predictor = Predictor(Halves(), device="cpu", batch_size=2, classes=NAMES)
    pictures = [np.zeros((40, 100, 3), np.uint8), np.zeros((90, 30, 3), np.uint8), np.zeros((1, 4), np.uint8)]
    wide, upright, line = predictor(pictures)
    assert [len(batch) for batch in predictor.model.batches] == [2, 1]  # sizes may differ in a batch
    assert [tuple(image.shape) for image in predictor.model.batches[0]] == [(3, 26, 64), (3, 64, 21)]
    assert wide.mask.shape == wide.image_size == (40, 100) and upright.mask.shape == (90, 30) and line.mask.shape == (1, 4)
    assert wide.mask.dtype == np.uint8 and wide.shares() == {"sky": 0.5, "wall": 0.5} and wide.classes == NAMES
    assert wide.palette == tuple(palette_for(NAMES))


def test_what_a_segmentation_tells() -> None:
    mask = np.zeros((2, 10), np.uint8)
    mask[:, 1:] = 1
    mask[0, 9] = 4
    found = Segmentation(mask, NAMES, tuple(COLOURS))
    assert found.shares() == {"road": 0.85, "sky": 0.1, "wall": 0.05} and list(found.pixels()) == [1, 0, 4]
    assert found.to_dict() == {
        "height": 2,
        "width": 10,
        "classes": [
            {"class_id": 1, "name": "road", "pixels": 17, "share": 0.85},
            {"class_id": 0, "name": "sky", "pixels": 2, "share": 0.1},
            {"class_id": 4, "name": "wall", "pixels": 1, "share": 0.05},
        ],
    }
    json.dumps(found.to_dict())
    assert Segmentation(mask, CITYSCAPES_CLASSES).palette == CITYSCAPES_PALETTE


def test_index_png_holds_numbers_and_looks_right(tmp_path: Path) -> None:
    mask = RNG.integers(0, 5, (20, 30)).astype(np.uint8)
    Segmentation(mask, NAMES, tuple(COLOURS)).save_index(tmp_path / "index.png")
    with Image.open(tmp_path / "index.png") as image:
        np.testing.assert_array_equal(np.asarray(image), mask)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(COLOURS, np.uint8)[mask])
    np.testing.assert_array_equal(read_image(tmp_path / "index.png"), np.array(COLOURS, np.uint8)[mask])
    assert cv2.imread(str(tmp_path / "index.png")).shape == (20, 30, 3)
    many = tuple(f"class {i}" for i in range(300))
    wide = Predictor(Halves(300), device="cpu", classes=many)(np.zeros((8, 8, 3), np.uint8))[0]
    assert wide.mask.dtype == np.int16 and wide.shares() == {"class 0": 0.5, "class 299": 0.5}
    wide.save_index(tmp_path / "wide.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "wide.png"), cv2.IMREAD_UNCHANGED), wide.mask)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    network = create_model("vwformer_mit_debug", num_classes=5)
    nn.init.normal_(dict(network.named_parameters())[last_weight(network)], std=1.0)  # masks of several classes
    save_safetensors(path, network.state_dict(), {"dataset_meta": {"classes": NAMES, "palette": COLOURS}})
    return path


def last_weight(network: nn.Module) -> str:
    """Name of the weight that gives the logits."""
    return [
        name for name, p in network.decode_head.named_parameters(prefix="decode_head") if p.shape[:1] == (5,) and p.ndim > 1
    ][-1]


def picture(height: int = 50, width: int = 90) -> np.ndarray:
    small = RNG.integers(0, 256, (5, 9, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def run_checkpoint(checkpoint: Path, path: Path, pipeline: list[dict] | None, model: str = "arch='vwformer'") -> Path:
    """What a training run leaves behind: weights, the config as text, class names and colours."""
    from safetensors.torch import load_file

    text = f"model = dict(type='Segmenter', {model}, backbone='mit_debug', backbone_pretrained=True)\n"
    if pipeline is not None:
        steps = [dict(type="LoadImage"), *pipeline, dict(type="LoadSemanticMask"), dict(type="PackSegInputs")]
        text += f"test_dataloader = dict(dataset=dict(type='SemanticDataset', pipeline={steps!r}))\n"
    meta = {"cfg": text, "dataset_meta": {"classes": list(NAMES), "palette": COLOURS}}
    torch.save({"meta": meta, "state_dict": load_file(checkpoint)}, path)
    return path


def test_predictor_on_a_network_equals_the_test_pipeline(checkpoint: Path, tmp_path: Path) -> None:
    image = picture()
    resize = dict(size=(96, 64), keep_ratio=True, interpolation="cv2_bilinear")
    steps = [dict(type="Resize", **resize), dict(type="ResizeToMultiple", divisor=32)]
    predictor = Predictor(checkpoint=run_checkpoint(checkpoint, tmp_path / "best.pth", steps), device="cpu")
    found = predictor(image)[0]
    sample = {"img": image, "img_id": 0, "img_path": "", "ori_shape": (50, 90), "img_shape": (50, 90)}
    packed = PackSegInputs()(ResizeToMultiple(32)(Resize(**resize)(sample)))
    assert packed["inputs"].shape == (3, 64, 96)
    batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
    expected = predictor.model.test_step(batch)[0].pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(found.mask, expected)
    assert found.mask.shape == (50, 90) and len(found.pixels()) > 1
    assert found.classes == NAMES and list(found.palette) == COLOURS and predictor.task == "semantic"
    for arguments in ({"model": "vwformer_mit_debug"}, {"deploy": True}):
        other = Predictor(checkpoint=tmp_path / "best.pth", device="cpu", **arguments)(image)[0]
        assert (other.mask == found.mask).mean() > 0.999


@pytest.mark.parametrize(
    "pipeline, kinds",
    [
        (None, [Resize]),  # the model's own
        ([], []),  # evaluated at the size of the pictures
        ([dict(type="Resize", size=(64, 64))], [Resize]),
        ([dict(type="TestTimeAug", scales=[0.5, 1.0], size=(64, 64), old=1)], [TestTimeAug]),
        ([dict(type="Resize", scale=(2048, 512), keep_ratio=True)], [Resize]),  # of another toolkit
    ],
)
def test_input_as_the_checkpoint_says(checkpoint: Path, tmp_path: Path, pipeline: list | None, kinds: list[type]) -> None:
    predictor = Predictor(checkpoint=run_checkpoint(checkpoint, tmp_path / "a.pth", pipeline), device="cpu")
    assert [type(step) for step in predictor.steps] == kinds
    if pipeline and "size" in pipeline[0]:
        assert predictor.steps[0].size == (64, 64)
        assert predictor(picture())[0].mask.shape == (50, 90)
    elif pipeline != []:
        assert predictor.steps[0].size == tuple(predictor.model.eval_resize["size"])


def test_views_and_windows(checkpoint: Path, tmp_path: Path) -> None:
    steps = [dict(type="Resize", size=(128, 64), keep_ratio=True), dict(type="ResizeToMultiple", divisor=32)]
    path = run_checkpoint(checkpoint, tmp_path / "a.pth", steps)
    images = [picture(), picture(70, 60)]
    plain = Predictor(checkpoint=path, device="cpu")
    viewed = Predictor(checkpoint=path, device="cpu", tta=True, batch_size=2)
    (step,) = viewed.steps
    assert isinstance(step, TestTimeAug) and (step.size, step.divisor, step.flip) == ((128, 64), 32, True)
    for one, both in zip([viewed(image)[0] for image in images], viewed(images)):
        np.testing.assert_array_equal(one.mask, both.mask)
    mirrored = viewed(np.ascontiguousarray(images[0][:, ::-1]))[0].mask[:, ::-1]
    assert (mirrored == viewed(images[0])[0].mask).mean() > 0.99  # views and their mirror images average out
    assert (plain(images[0])[0].mask != viewed(images[0])[0].mask).any()
    windows = Predictor(checkpoint=path, device="cpu", slide=True)
    assert windows.model.test_cfg == {"mode": "slide", "window_batch": 4, "crop_size": (512, 512), "stride": (341, 341)}
    np.testing.assert_array_equal(windows(images[0])[0].mask, plain(images[0])[0].mask)  # one window holds all
    model = "arch='vwformer', data_preprocessor=dict(size=(64, 96)), test_cfg=dict(mode='whole', stride=(32, 48))"
    small = Predictor(checkpoint=run_checkpoint(checkpoint, path, steps, model), device="cpu", slide=True)
    assert (small.model.test_cfg["crop_size"], small.model.test_cfg["stride"]) == ((64, 96), (32, 48))
    assert small(images[0])[0].mask.shape == (50, 90)


@pytest.mark.parametrize(
    "head, message",
    [
        ("arch='upernet', decode_head=dict(type='mmseg.SegformerHead', channels=16), auxiliary_head=False", None),
        ("decode_head=dict(type='os.system')", "'os.system' that mmvit does not have"),
        ("decode_head=dict(type='mmseg.UPerHead', init_cfg=dict(type='Pretrained'))", "'Pretrained' that mmvit does not have"),
    ],
)
def test_published_heads_of_mmseg_may_be_named_by_a_checkpoint(
    checkpoint: Path, tmp_path: Path, head: str, message: str | None
) -> None:
    path = run_checkpoint(checkpoint, tmp_path / "a.pth", None, head)
    if message is None:
        loaded = torch.load(path, weights_only=True)
        settings = dict(type="mmseg.SegformerHead", channels=16)
        network = create_model("upernet_mit_debug", num_classes=5, decode_head=settings, auxiliary_head=False)
        torch.save({**loaded, "state_dict": network.state_dict()}, path)
        assert type(Predictor(checkpoint=path, device="cpu").model.decode_head).__name__ == "SegformerHead"
        return
    with pytest.raises(UserError, match=message):
        Predictor(checkpoint=path, device="cpu")


def test_names_and_colours_of_known_data_sets() -> None:
    assert Predictor(Halves(150), device="cpu").classes == ADE20K_CLASSES
    city = Predictor(Halves(19), device="cpu")
    assert city.classes == CITYSCAPES_CLASSES and city.palette == CITYSCAPES_PALETTE
    assert Predictor(Halves(3), device="cpu").classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("palette", [[[1, 2, 3]], "red", [[1, 2, 999]] * 5, [[1, 2]] * 5, [None] * 5])
def test_colours_that_do_not_fit_are_replaced(checkpoint: Path, tmp_path: Path, palette: object) -> None:
    loaded = torch.load(run_checkpoint(checkpoint, tmp_path / "a.pth", []), weights_only=True)
    loaded["meta"]["dataset_meta"]["palette"] = palette
    torch.save(loaded, tmp_path / "a.pth")
    assert Predictor(checkpoint=tmp_path / "a.pth", device="cpu").palette == tuple(palette_for(NAMES))


def test_predictor_errors(checkpoint: Path) -> None:
    for arguments, message in (
        (
            {"model": "vwformer_mit_debug"},
            r"no published weights for 'vwformer_mit_debug': train it .*configs/vwformer_ade20k\.py",
        ),
        ({"model": "upernet_pvt_tiny_cityscapes"}, r"configs/upernet_cityscapes\.py --backbone pvt_tiny\).*--checkpoint"),
        ({"model": "vwformer_mit_b9"}, "no model 'vwformer_mit_b9'.*Did you mean"),
        ({"model": "vwformer_mit_b0", "checkpoint": checkpoint}, "does not fit|cannot"),
        ({"model": Halves(), "classes": NAMES[:2]}, "2 class names"),
        ({"model": "rtdetr_shapes", "tta": True}, "tta is for semantic segmentation, but this model does detection"),
        ({"model": "rtdetr_shapes", "slide": True}, "slide is for semantic segmentation"),
    ):
        with pytest.raises(UserError, match=message):
            Predictor(device="cpu", **arguments)


# ---- drawing


def halves(height: int, width: int, names: tuple[str, ...] = NAMES) -> Segmentation:
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    return Segmentation(mask, names, tuple(COLOURS))


def test_overlay_mixes_colours_and_marks_borders() -> None:
    image = np.full((200, 400, 3), 100, np.uint8)
    drawn = draw_segmentation(image, halves(200, 400))
    assert (image == 100).all() and drawn.shape[1] == 400 and len(drawn) > 215
    np.testing.assert_allclose(drawn[100, 100], (np.array(COLOURS[0]) + 100) / 2, atol=1)
    np.testing.assert_allclose(drawn[100, 300], (np.array(COLOURS[1]) + 100) / 2, atol=1)
    assert (drawn[:200, 200] == 255).all() and (drawn[:200] == 255).all(axis=2).sum() == 200  # one pixel wide
    legend = drawn[200:]
    for colour, place in ((COLOURS[0], 0), (COLOURS[1], 1)):
        columns = np.nonzero((legend == colour).all(axis=2))[1]
        assert len(columns) > 50 and (columns.min() > columns.max() / 2) == bool(place)
    assert not (legend == COLOURS[2]).all(axis=2).any()  # absent: not in the legend
    np.testing.assert_array_equal(draw_segmentation(image, halves(200, 400), opacity=0)[:200], image)
    assert draw_segmentation(image, halves(200, 400), opacity=1)[100, 100].tolist() == list(COLOURS[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (30, 30), (600, 200), (3000, 4000)])
def test_overlay_hides_nothing_whatever_the_size(size: tuple[int, int]) -> None:
    drawn = draw_segmentation(np.full((*size, 3), 90, np.uint8), halves(*size))
    assert drawn.shape[0] >= size[0] and drawn.shape[1] >= size[1]
    assert drawn.shape[0] == size[0] or drawn.shape[1] == size[1] or max(size) < 300
    ground = np.concatenate([drawn[size[0] :].reshape(-1, 3), drawn[:, size[1] :].reshape(-1, 3)])
    assert (ground == 255).all(axis=1).mean() > 0.3


def test_frames_of_a_video_have_one_size() -> None:
    names = tuple(f"class with a long name {i}" for i in range(90))
    many = Segmentation((np.arange(300 * 200) % 90).astype(np.uint8).reshape(200, 300), names)
    one = Segmentation(np.zeros((200, 300), np.uint8), names)
    frames = [draw_segmentation(np.zeros((200, 300, 3), np.uint8), found, legend_rows=3) for found in (many, one)]
    assert frames[0].shape == frames[1].shape and frames[0].shape[1] == 300


def test_drawing_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match=r"\(20, 30\) .* on a picture of \(30, 20\)"):
        draw_segmentation(np.zeros((30, 20, 3), np.uint8), halves(20, 30))
    with pytest.raises(UserError, match="opacity is 2"):
        draw_segmentation(np.zeros((20, 30, 3), np.uint8), halves(20, 30), opacity=2)


def test_shares_are_short() -> None:
    assert [percent(share) for share in (1, 0.414, 0.01, 0.0034, 0.0002)] == ["100%", "41%", "1%", "0.3%", "<0.1%"]


# ---- command


def predict(*words: object, checkpoint: Path, out: Path) -> int:
    argv = [*map(str, words), "--model", "vwformer_mit_debug", "--checkpoint", checkpoint, "--out", out, "--device", "cpu"]
    return run_command(command.add_arguments, command.run, "predict", list(map(str, argv)))


def test_command_draws_and_writes_index_and_json(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("000000000042.jpg", "a.png"):
        Image.fromarray(picture(120, 200)).save(folder / name)
    (folder / "bad.jpg").write_bytes(b"no picture")
    assert predict(folder, "--batch-size", 2, "--opacity", 0.7, checkpoint=checkpoint, out=out) == 1
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000000000042.jpg", "000000000042_index.png", "a.jpg", "a_index.png", "predictions.json"]
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert (
        len(lines) == 3
        and "a.png: " in lines[1]
        and "%" in lines[1]
        and "a_index.png" in lines[1]
        and "bad.jpg" in captured.err
    )
    results = json.loads((out / "predictions.json").read_text())
    assert [one["image_id"] for one in results] == [42, 1] and results[1]["file_name"] == str(folder / "a.png")
    mask = np.asarray(Image.open(results[1]["index_file"]))
    assert mask.shape == (results[1]["height"], results[1]["width"]) == (120, 200)
    for entry in results[1]["classes"]:
        assert entry["pixels"] == (mask == entry["class_id"]).sum() and entry["name"] == NAMES[entry["class_id"]]
        assert entry["share"] == round(entry["pixels"] / mask.size, 6)
    assert sum(entry["pixels"] for entry in results[1]["classes"]) == mask.size
    drawn = read_image(out / "a.jpg")
    assert drawn.shape[0] >= 120 and drawn.shape[1] > 200  # the legend lies beside


def test_command_json_on_stdout(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert predict(tmp_path / "a.png", "--json", "--slide", checkpoint=checkpoint, out=out) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((out / "predictions.json").read_text())
    assert "1 picture drawn" in captured.err and "classes" in captured.err
    assert predict(tmp_path / "a.png", "--opacity", 3, checkpoint=checkpoint, out=out) == 2
    assert "--opacity is 3" in capsys.readouterr().err


def test_command_on_a_video(tmp_path: Path, checkpoint: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(4):
        writer.write(picture(48, 64))
    writer.release()
    assert predict(film, "--batch-size", 3, checkpoint=checkpoint, out=tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["film.json", "film.mp4"]
    listing = json.loads((tmp_path / "out" / "film.json").read_text())
    assert [frame["frame"] for frame in listing["frames"]] == [0, 1, 2, 3] and listing["frames"][3]["seconds"] == 0.3
    assert sum(entry["pixels"] for entry in listing["frames"][2]["classes"]) == 48 * 64
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and capture.get(cv2.CAP_PROP_FRAME_WIDTH) == 64
    assert capture.get(cv2.CAP_PROP_FRAME_HEIGHT) > 48 + 30  # the legend lies below


def test_demo_script_says_what_to_do_without_weights(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "street.jpg")
    demo = Path(__file__).parents[1] / "demo" / "image_demo.py"
    done = subprocess.run(
        [sys.executable, demo, tmp_path / "street.jpg", "--model", "vwformer_mit_b0_ade20k", "--out", tmp_path / "out"],
        env={**os.environ, "MMVIT_CACHE": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "no published weights for 'vwformer_mit_b0_ade20k'" in errors[0]
    assert "configs/vwformer_ade20k.py --backbone mit_b0" in errors[0] and "--checkpoint" in errors[0]
