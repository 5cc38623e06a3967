"""Panoptic and instance results of mask classifiers: what they tell, their files, drawing, the predictor, the command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools import mask as mask_tools
from torch import nn

from mmvit.architectures import create_model
from mmvit.cli import run_command
from mmvit.data import (
    ADE20K_THINGS,
    COCO_PANOPTIC_CATEGORY_IDS,
    COCO_PANOPTIC_CLASSES,
    COCO_PANOPTIC_PALETTE,
    COCO_THINGS,
    DataSample,
    LoadImage,
    LoadPanoptic,
    PanopticDataset,
    read_image,
)
from mmvit.engine import assemble, load_config
from mmvit.errors import UserError
from mmvit.evaluation import evaluate_panoptic
from mmvit.inference import Detections, PanopticSegmentation, Predictor, Segmentation, command, draw_detections, draw_panoptic
from mmvit.inference.draw import short
from mmvit.inference.kinds import Output, Picture, Segments
from mmvit.inference.labels import Plate, overlap, readable_on
from mmvit.inference.shades import shades
from mmvit.registry import DATASETS
from mmvit.weights import save_safetensors

NAMES = ("car", "person", "road", "sky")
THINGS = (0, 1)
COLOURS = [(0, 0, 142), (220, 20, 60), (128, 64, 128), (70, 130, 180)]
CAT_IDS = (3, 1, 149, 187)


def street(height: int = 120, width: int = 200) -> tuple[np.ndarray, list[dict]]:
    """Sky over road, two cars side by side and a person on it, a strip of void on the left."""
    ids = np.full((height, width), 1, np.int32)
    ids[height // 2 :] = 2
    ids[height // 2 : height * 5 // 6, width // 4 : width // 2] = 3
    ids[height // 2 : height * 5 // 6, width // 2 : width * 3 // 4] = 4
    ids[height // 3 : height * 2 // 3, width * 4 // 5 : width * 9 // 10] = 5
    ids[:, : width // 20] = 0
    labels = {1: 3, 2: 2, 3: 0, 4: 0, 5: 1}
    return ids, [{"id": i, "label": label, "score": 1 - i / 10} for i, label in labels.items()]


def found(height: int = 120, width: int = 200) -> PanopticSegmentation:
    return PanopticSegmentation.of(*street(height, width), NAMES, THINGS, COLOURS, CAT_IDS)


class Street(nn.Module):
    """Follows the contract of mask classifiers: whatever the picture shows, it finds `street` in it."""

    task, eval_resize, num_classes = "panoptic", {"size": (32, 64), "keep_ratio": True}, 4

    def __init__(self, outputs: tuple[str, ...] = ("panoptic",)) -> None:
        super().__init__()
        self.outputs, self.things = outputs, THINGS
        self.batches: list[int] = []

    def test_step(self, data: dict) -> list[DataSample]:
        self.batches.append(len(data["inputs"]))
        for sample in data["data_samples"]:
            ids, segments = street(*sample.ori_shape)
            if "panoptic" in self.outputs:
                sample.pred_panoptic_seg = PixelData(data=torch.from_numpy(ids)[None])
                sample.set_metainfo({"segments_info": segments})
            if "instance" in self.outputs:
                things = [segment for segment in segments if segment["label"] in self.things]
                masks = [mask_tools.encode(np.asfortranarray(ids == segment["id"], np.uint8)) for segment in things]
                sample.pred_instances = InstanceData(
                    masks=masks,
                    scores=torch.tensor([segment["score"] for segment in things]),
                    labels=torch.tensor([segment["label"] for segment in things]),
                    bboxes=torch.from_numpy(mask_tools.toBbox(masks)).float(),
                )
            if "semantic" in self.outputs:
                table = np.array([0, *(segment["label"] for segment in segments)], np.uint8)
                sample.pred_sem_seg = PixelData(data=torch.from_numpy(table[ids])[None])
        return data["data_samples"]


# ---- results


def test_what_a_panoptic_segmentation_tells() -> None:
    result = found()
    ids, _ = street()
    assert result.ids.dtype == np.uint8 and result.image_size == (120, 200) and len(result) == 5
    assert result.names == ["sky", "road", "car", "car", "person"]
    assert [segment.isthing for segment in result.segments] == [False, False, True, True, True]
    assert [segment.area for segment in result.segments] == [int((ids == i).sum()) for i in range(1, 6)]
    assert result.void == 120 * 10 and result.segments[4].score == 0.5
    assert list(result.pixels()) == [3, 2, 0, 1] and result.pixels()[0] == 40 * 100
    np.testing.assert_array_equal(result.mask(4), ids == 4)
    assert result.boxes[2].tolist() == [50, 60, 100, 100]
    assert result.to_dict()["segments"][4] == {
        "id": 5,
        "category_id": 1,
        "category_name": "person",
        "isthing": 1,
        "area": 800,
        "bbox": [160, 40, 20, 40],
        "score": 0.5,
    }
    json.dumps(result.to_dict())
    assert result.categories()[3] == {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]}
    known = PanopticSegmentation.of(ids, street()[1], COCO_PANOPTIC_CLASSES, COCO_THINGS)
    assert known.cat_ids == COCO_PANOPTIC_CATEGORY_IDS and known.palette == COCO_PANOPTIC_PALETTE


def test_pictures_without_segments_and_segments_without_scores() -> None:
    empty = PanopticSegmentation.of(np.zeros((20, 400), np.int32), [], NAMES, THINGS)
    assert len(empty) == 0 and empty.void == 8000 and empty.boxes.shape == (0, 4) and empty.to_dict()["segments"] == []
    assert draw_panoptic(np.full((20, 400, 3), 7, np.uint8), empty)[:20].tolist() == [[[7] * 3] * 400] * 20
    one = PanopticSegmentation.of(np.full((9, 9), 70_000), [{"id": 70_000, "label": 2}], NAMES, THINGS)
    assert one.ids.dtype == np.uint32 and one.segments[0].score is None
    assert one.to_coco(1, "a.jpg")["segments_info"] == [{"id": 70_000, "category_id": 3}]


def test_maps_and_segments_that_do_not_fit_together() -> None:
    ids, segments = street()
    for wrong, message in (
        (segments[1:], "id 1 is in the map but not in segments_info"),
        ([*segments, {"id": 9, "label": 0}], "segment id 9 .* has no pixel"),
        ([*segments[1:], {"id": 1, "label": 4}], "segment 1 has label 4, but there are 4 classes"),
        ([*segments, segments[0]], "segment id 1 twice"),
        ([*segments, {"id": 0, "label": 0}], "0 is no id"),
    ):
        with pytest.raises(UserError, match=f"a.jpg: .*{message}"):
            PanopticSegmentation.of(ids, wrong, NAMES, THINGS, name="a.jpg")


def test_saved_files_are_read_back_and_score_one(tmp_path: Path) -> None:
    result = found()
    Image.fromarray(np.zeros((120, 200, 3), np.uint8)).save(tmp_path / "a.png")
    result.save(tmp_path / "out.json", 7, "a.png")
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == "RGB" and np.asarray(image)[70, 60].tolist() == [3, 0, 0]
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["images"] == [{"id": 7, "file_name": "a.png", "height": 120, "width": 200}]
    assert content["categories"] == result.categories()
    assert content["annotations"][0]["segments_info"][4] == {
        "id": 5,
        "category_id": 1,
        "score": 0.5,
        "area": 800,
        "bbox": [160, 40, 20, 40],
        "iscrowd": 0,
    }
    data = PanopticDataset(tmp_path / "out.json", img_dir=tmp_path, pipeline=[LoadImage(), LoadPanoptic()])
    assert data.metainfo["classes"] == ("person", "car", "road", "sky") and data.metainfo["things"] == (0, 1)
    sample = data[0]
    np.testing.assert_array_equal(sample["pan_ids"], result.ids)
    assert [data.metainfo["classes"][segment["label"]] for segment in sample["segments"]] == result.names
    scores = evaluate_panoptic(tmp_path / "out.json", None, tmp_path / "out.json", None)
    assert scores["PQ"] == scores["PQ_th"] == scores["PQ_st"] == scores["PQ/car"] == 1.0


def test_large_ids_are_colours(tmp_path: Path) -> None:
    ids = np.full((4, 6), 2 + 256 * 3 + 65536 * 4)
    PanopticSegmentation.of(ids, [{"id": int(ids[0, 0]), "label": 0}], NAMES, THINGS).save(tmp_path / "x.json")
    with Image.open(tmp_path / "x" / "image.png") as image:
        assert np.asarray(image)[0, 0].tolist() == [2, 3, 4]


def test_a_field_of_a_sample_takes_its_type_only() -> None:
    sample = DataSample()
    sample.pred_panoptic_seg = PixelData(data=torch.zeros(1, 2, 3, dtype=torch.int32))
    assert sample.pred_panoptic_seg.data.shape == (1, 2, 3) and "pred_panoptic_seg" in sample
    with pytest.raises(TypeError, match="DataSample.pred_panoptic_seg must be PixelData, got Tensor"):
        sample.pred_panoptic_seg = torch.zeros(1, 2, 3)
    with pytest.raises(TypeError, match="pred_instances must be InstanceData, got dict"):
        sample.pred_instances = {}


# ---- drawing


def test_segments_have_distinct_colours_and_borders() -> None:
    image = np.full((400, 640, 3), 100, np.uint8)
    result = found(400, 640)
    drawn = draw_panoptic(image, result)
    assert (image == 100).all() and drawn.shape[1] == 640 and len(drawn) > 415
    np.testing.assert_allclose(drawn[20, 60], (np.array(COLOURS[3]) + 100) / 2, atol=1)  # stuff: the class's colour
    np.testing.assert_allclose(drawn[390, 60], (np.array(COLOURS[2]) + 100) / 2, atol=1)
    cars = drawn[210, 200].astype(int), drawn[210, 400].astype(int)
    np.testing.assert_allclose(cars[0], (np.array(COLOURS[0]) + 100) / 2, atol=1)
    assert np.abs(cars[0] - cars[1]).max() > 40
    assert drawn[100, 10].tolist() == [100] * 3  # void
    assert (drawn[210:330, 320] == 255).all() and (drawn[210:330, 319] < 100).all()  # between the cars
    np.testing.assert_array_equal(draw_panoptic(image, result, opacity=1)[20, 60], COLOURS[3])
    legend = drawn[400:]
    for colour in COLOURS:
        assert (legend == colour).all(axis=2).sum() > 50
    with pytest.raises(UserError, match="on a picture of"):
        draw_panoptic(image[:300], result)
    with pytest.raises(UserError, match="opacity is 2"):
        draw_panoptic(image, result, opacity=2)


def test_objects_of_one_class_have_clearly_different_shades() -> None:
    for base in (*COLOURS, (0, 0, 0), (255, 255, 255), (128, 128, 128), (220, 220, 0)):
        chosen = shades([0] * 12, [base])
        assert chosen[0] == base and chosen == shades([0] * 12, [base])
        lab = cv2.cvtColor(np.array([chosen], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
        gaps = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(12, 1)]
        assert gaps.min() > 12, base
    assert shades([1, 0, 1], COLOURS)[:2] == [COLOURS[1], COLOURS[0]]
    assert len(shades([0] * 500, COLOURS)) == 500


def test_labels_lie_in_the_middle_of_their_segments_or_nowhere() -> None:
    plate = Plate("person", (400, 640))
    width, height = plate.size
    mask = np.zeros((200, 300), bool)
    mask[20:180, 30:130] = True  # the roomy part
    mask[90:110, 130:300] = True
    assert plate.place_within(mask, (50, 100), [])
    x1, y1, x2, y2 = plate.rectangle
    assert (x2 - x1, y2 - y1) == (width, height)
    assert abs((x1 + x2) / 2 - (50 + 80)) <= 3 and abs((y1 + y2) / 2 - 200) <= 32
    assert mask[y1 - 100 : y2 - 100, x1 - 50 : x2 - 50].mean() > 0.9
    taken = [plate.rectangle]
    other = Plate("person", (400, 640))
    assert other.place_within(mask, (50, 100), taken) and not overlap(other.rectangle, taken[0])
    assert not plate.place_within(np.ones((height - 4, 300), bool), (10, 10), [])  # too low
    assert not plate.place_within(np.ones((200, width // 2), bool), (10, 10), [])  # too narrow
    assert not plate.place_within(mask[:160, :100] | True, (50, 100), [(0, 0, 640, 400)])  # no room left
    ring = np.zeros((200, 200), np.uint8)
    cv2.circle(ring, (100, 100), 95, 1, 4)
    assert not plate.place_within(ring.astype(bool), (0, 0), [])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (14, 60), (30, 40), (90, 2000), (1500, 2000)])
def test_labels_never_leave_the_picture(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    draw = Plate.draw_dark
    monkeypatch.setattr(Plate, "draw_dark", lambda self, canvas: (seen.append(self.rectangle), draw(self, canvas)))
    ids, label = np.ones(size, np.int32), {"id": 1, "label": 1}
    result = PanopticSegmentation.of(ids, [label], NAMES, THINGS)
    drawn = draw_panoptic(np.zeros((*size, 3), np.uint8), result)
    assert drawn.shape[0] >= size[0] and drawn.shape[1] >= size[1] and len(seen) == (min(size) > 40)
    assert all(0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0] for x1, y1, x2, y2 in seen)


def test_text_is_readable_on_any_colour() -> None:
    def light(colour: tuple[int, int, int]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    for colour in COCO_PANOPTIC_PALETTE:
        ratio = sorted((light(colour) + 0.05, light(readable_on(colour)) + 0.05))
        assert ratio[1] / ratio[0] > 4.5


def test_names_lose_what_only_coco_means_by_them() -> None:
    for name, shown in (("sky-other-merged", "sky"), ("door-stuff", "door"), ("water-other", "water"), ("tree-merged", "tree")):
        assert short(name) == shown
    assert len({short(name) for name in COCO_PANOPTIC_CLASSES}) == 133 and short("wall-brick") == "wall-brick"


def test_frames_of_a_video_have_one_size() -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    empty = PanopticSegmentation.of(np.zeros((120, 200), int), [], NAMES, THINGS)
    assert draw_panoptic(image, found(), legend_rows=3).shape == draw_panoptic(image, empty, legend_rows=3).shape


def test_instances_are_drawn_as_masks_with_labels() -> None:
    result = Predictor(Street(("instance",)), device="cpu", classes=NAMES)(np.full((240, 400, 3), 90, np.uint8))[0]
    drawn = draw_detections(np.full((240, 400, 3), 90, np.uint8), result)
    left, right = drawn[125, 110].astype(int), drawn[125, 210].astype(int)
    assert (left != 90).any() and np.abs(left - right).max() > 20  # the cars
    assert (drawn[20, 200] == 90).all()


# ---- predicting


def test_the_predictor_gives_panoptic_instance_and_semantic_results() -> None:
    pictures = [np.zeros((60, 100, 3), np.uint8), np.zeros((90, 60, 3), np.uint8)]
    predictor = Predictor(Street(), device="cpu", classes=NAMES, batch_size=2)
    wide, upright = predictor(pictures)
    assert predictor.task == "panoptic" and predictor.things == THINGS and predictor.model.batches == [1, 1]
    assert isinstance(wide, PanopticSegmentation) and wide.names == ["sky", "road", "car", "car", "person"]
    np.testing.assert_array_equal(upright.ids, street(90, 60)[0])
    instances = Predictor(Street(), device="cpu", classes=NAMES, task="instance", score_thr=0.6)
    objects = instances(pictures[0])[0]
    assert isinstance(objects, Detections) and objects.names == ["car", "car"] and instances.model.outputs == ("instance",)
    np.testing.assert_array_equal(objects.mask(0), street(60, 100)[0] == 3)
    classes = Predictor(Street(), device="cpu", classes=NAMES, task="semantic")(pictures[0])[0]
    assert isinstance(classes, Segmentation) and set(classes.shares()) == {"sky", "road", "car", "person"}
    assert Predictor(Street(("semantic",)), device="cpu").task == "semantic"
    assert Predictor(Street(("instance", "semantic")), device="cpu").task == "instance"


def test_choices_that_make_no_sense() -> None:
    for arguments, message in (
        ({"model": Street(("semantic",)), "task": "panoptic"}, "this model does semantic, not panoptic"),
        ({"model": Street(), "task": "panoptik"}, "not panoptik: Did you mean 'panoptic'"),
        ({"model": Street(), "tta": True}, "tta is for semantic segmentation, but this model does panoptic"),
        ({"model": Street(), "task": "semantic", "slide": True}, "slide .* is a mask classifier"),
        ({"model": "rtdetr_shapes", "task": "panoptic"}, "does detection, not panoptic"),
        ({"model": "mask2former_pvt_tiny_coco_pan"}, r"mask2former_coco_panoptic\.py --backbone pvt_tiny.*--checkpoint"),
        ({"model": "mask2former_pvt_tiny_coco_ins"}, r"mask2former_coco_instance\.py"),
        ({"model": "pem_stdc_2_cityscapes_sem"}, r"configs/pem_cityscapes\.py --backbone stdc_2"),
        ({"model": "kmax_pvt_tiny"}, r"configs/kmax_coco_panoptic\.py --backbone pvt_tiny"),
        ({"model": "vwmask2former_swin_tiny"}, r"mask2former_ade20k\.py --backbone swin_tiny .*model\.arch=vwmask2former"),
        ({"model": "kmax_convnext_tinny"}, "no model 'kmax_convnext_tinny'.*Did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            Predictor(device="cpu", **arguments)


META = {"classes": NAMES, "things": THINGS, "cat_ids": CAT_IDS, "palette": COLOURS}


@pytest.fixture(scope="module")
def run_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training run of configs/pem_shapes.py leaves behind, on four classes; it takes every query for a segment."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data"
    data.mkdir()
    Image.fromarray(np.zeros((120, 200, 3), np.uint8)).save(data / "a.png")
    found().save(data / "panoptic.json", 1, "a.png")
    cfg = load_config(Path(__file__).parents[1] / "configs" / "pem_shapes.py")
    cfg.model.test_cfg = {"object_threshold": 0.0, "overlap_threshold": 0.0}
    cfg = assemble(cfg, data=data)
    torch.manual_seed(0)
    network = create_model("pem_resnet_debug", num_classes=cfg.model.num_classes)
    metainfo = DATASETS.build(cfg.train_dataloader.dataset).metainfo
    meta = {"cfg": cfg.pretty_text, "dataset_meta": metainfo}
    torch.save({"meta": meta, "state_dict": network.state_dict()}, folder / "best.pth")
    return folder / "best.pth"


def test_a_checkpoint_of_a_run_says_classes_things_and_outputs(run_checkpoint: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    predictor = Predictor(checkpoint=run_checkpoint, device="cpu")
    assert predictor.task == "panoptic" and predictor.classes == ("person", "car", "road", "sky")
    assert predictor.things == predictor.model.things == (0, 1) and predictor.cat_ids == (1, 3, 149, 187)
    assert predictor.palette[0] == COLOURS[1] and predictor.steps[0].size == (192, 192)
    result = predictor(picture)[0]
    assert result.image_size == (90, 120) and len(result) > 0 and result.categories()[2]["isthing"] == 0
    named = Predictor("pem_resnet_debug", checkpoint=run_checkpoint, device="cpu")
    assert named.things == (0, 1) and named.model.outputs == ("panoptic",)
    objects = Predictor(checkpoint=run_checkpoint, device="cpu", task="instance", deploy=True)(picture)[0]
    assert len(objects) > 0 and set(objects.labels.tolist()) <= {0, 1} and objects.masks[0]["size"] == [90, 120]
    assert isinstance(objects.masks[0]["counts"], bytes)
    semantic = Predictor(checkpoint=run_checkpoint, device="cpu", task="semantic")
    assert not semantic.model.scores_first and semantic(picture)[0].mask.shape == (90, 120)


def test_named_models_take_things_from_the_checkpoint_else_from_their_data_set(tmp_path: Path) -> None:
    size = {"data_preprocessor": {"size": (65, 97)}, "eval_size": (97, 65)}
    network = create_model("kmax_resnet_debug", num_classes=4, **size)
    assert Predictor(network, device="cpu").things == (0, 1, 2, 3)
    save_safetensors(tmp_path / "a.safetensors", network.state_dict(), {"dataset_meta": META})
    predictor = Predictor(network, checkpoint=tmp_path / "a.safetensors", device="cpu", classes=NAMES)
    assert predictor.things == network.things == THINGS
    result = predictor([np.zeros((40, 97, 3), np.uint8), np.zeros((64, 50, 3), np.uint8)])
    assert [one.image_size for one in result] == [(40, 97), (64, 50)]
    ade = create_model("mask2former_resnet_debug_ade20k")
    assert ade.things == ADE20K_THINGS and Predictor(ade, device="cpu").classes[12] == "person"


# ---- command


def predict(*words: object, checkpoint: Path, out: Path) -> int:
    argv = [*map(str, words), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    return run_command(command.add_arguments, command.run, "predict", argv)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("000000000042.jpg", "a.png", "a.jpg"):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_command_writes_panoptic_png_and_json(
    pictures: Path, tmp_path: Path, run_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert predict(pictures, "--batch-size", 2, checkpoint=run_checkpoint, out=out) == 1
    names = ["000000000042.jpg", "a.jpg", "a_2.jpg", "predictions", "predictions.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    content = json.loads((out / "predictions.json").read_text())
    assert [(image["id"], Path(image["file_name"]).name) for image in content["images"]] == [
        (42, "000000000042.jpg"),
        (1, "a.jpg"),
        (2, "a.png"),
    ]
    assert [annotation["file_name"] for annotation in content["annotations"]] == ["000000000042.png", "a.png", "a_2.png"]
    assert [category["id"] for category in content["categories"]] == [1, 3, 149, 187]
    segment = content["annotations"][0]["segments_info"][0]
    assert set(segment) == {"id", "category_id", "score", "area", "bbox", "iscrowd"}
    scores = evaluate_panoptic(out / "predictions.json", None, out / "predictions.json", None)
    assert scores["PQ"] == 1.0
    data = PanopticDataset(out / "predictions.json", img_dir=".", pipeline=[LoadImage(), LoadPanoptic()])
    assert len(data) == 3 and data[2]["img"].shape == (60, 80, 3)
    assert read_image(out / "a.jpg").shape[1] > 80  # the legend lies beside
    captured = capsys.readouterr()
    assert "bad.jpg" in captured.err and "predictions/a_2.png" in captured.out and "region" in captured.out


def test_command_tasks_and_json(
    pictures: Path, tmp_path: Path, run_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = pictures / "a.png"
    assert predict(picture, "--json", checkpoint=run_checkpoint, out=tmp_path / "pan") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "pan" / "predictions.json").read_text())
    words = ("--task", "instance", "--score-thr", 0, "--json")
    assert predict(picture, *words, checkpoint=run_checkpoint, out=tmp_path / "ins") == 0
    instances = json.loads(capsys.readouterr().out)
    assert instances[0]["segmentation"]["size"] == [60, 80] and {one["category_id"] for one in instances} <= {1, 3}
    assert predict(picture, "--task", "semantic", checkpoint=run_checkpoint, out=tmp_path / "sem") == 0
    assert (tmp_path / "sem" / "a_index.png").is_file()
    assert predict(picture, "--tta", checkpoint=run_checkpoint, out=tmp_path / "x") == 2
    assert "this model does panoptic: leave it out" in capsys.readouterr().err


def test_command_on_a_video(tmp_path: Path, run_checkpoint: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for shade in range(3):
        writer.write(np.full((48, 64, 3), shade * 80, np.uint8))
    writer.release()
    assert predict(film, checkpoint=run_checkpoint, out=tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["film.json", "film.mp4"]
    frames = json.loads((tmp_path / "out" / "film.json").read_text())["frames"]
    assert len(frames) == 3 and sum(segment["area"] for segment in frames[1]["segments"]) <= 48 * 64


def test_what_is_done_stays_when_a_picture_fails(tmp_path: Path) -> None:
    def coming() -> object:
        yield Picture(Path("in/a.jpg"), 1, found(), {"png": "a.png"})
        raise KeyboardInterrupt

    segments = Segments(Output(tmp_path, []), 0.5)
    with pytest.raises(KeyboardInterrupt):
        segments.collect(coming())
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert len(content["annotations"]) == 1 and (tmp_path / "predictions" / "a.png").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "predictions").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write .*predictions.*--out"):
        Segments(Output(tmp_path / "other", []), 0.5).collect([Picture(Path("a.jpg"), 1, found(), {"png": "a.png"})])
    Segments(Output(tmp_path / "none", []), 0.5).collect([])
    assert not list((tmp_path / "none").iterdir())


def test_no_picture_among_the_inputs_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    out = Output(tmp_path, [folder / "a.png"])
    assert Segments(out, 0.5).beside(folder / "a.png", found()) == {"png": str(folder / "a_2.png")}
