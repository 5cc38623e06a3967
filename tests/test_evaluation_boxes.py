"""Box AP equals pycocotools' and the metric around it counts what it should."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmvit.data import DataSample, ResumableSampler
from mmvit.errors import UserError
from mmvit.evaluation import CocoBoxMetric, evaluate_boxes
from mmvit.evaluation.boxes import STAT_NAMES

CAT_IDS = (0, 3, 4, 17, 90)
NAMES = ("ant", "bee", "cow", "dog", "elk")


def make_problem(seed: int, images: int = 12, per_image: int = 150, crowds: bool = True) -> tuple[dict, list[dict]]:
    """Ground truth with crowds, empty pictures, a class without objects, all sizes; detections with ties and misses."""
    rng = np.random.default_rng(seed)
    pictures = [{"id": 7 * i + 3, "file_name": f"{i}.jpg", "height": 400, "width": 500} for i in range(images)]
    annotations, detections = [], []
    for number, picture in enumerate(pictures):
        boxes = []
        for _ in range(0 if number % 5 == 4 else rng.integers(1, 14)):
            width, height = np.exp(rng.uniform(np.log(6), np.log(250), 2))
            box = [rng.uniform(0, 500 - width), rng.uniform(0, 400 - height), width, height]
            cat_id = CAT_IDS[1] if number % 3 == 1 else int(rng.choice(CAT_IDS[:4]))  # a third of the pictures with one class
            boxes.append((box, cat_id))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture["id"],
                    "category_id": cat_id,
                    "bbox": box,
                    "area": width * height * rng.uniform(0.5, 1),
                    "iscrowd": int(crowds and rng.random() < 0.15),
                }
            )
        for _ in range(0 if number % 4 == 3 else per_image):
            if boxes and rng.random() < 0.6:
                box, cat_id = boxes[rng.integers(len(boxes))]
                box = (np.array(box) + np.tile(box[2:], 2) * rng.normal(0, 0.06, 4)).tolist()
                cat_id = cat_id if rng.random() < 0.8 else int(rng.choice(CAT_IDS))
                score = float(rng.beta(3, 2))
            else:
                box, cat_id, score = rng.uniform(1, 200, 4).tolist(), int(rng.choice(CAT_IDS)), float(rng.beta(2, 4))
            score = round(score, 1) if rng.random() < 0.5 else score  # many ties
            detections.append({"image_id": picture["id"], "category_id": cat_id, "bbox": box, "score": score})
    rng.shuffle(detections)
    categories = [{"id": cat_id, "name": name} for cat_id, name in zip(CAT_IDS, NAMES)]
    return {"images": pictures, "annotations": annotations, "categories": categories}, detections


def reference(truth: dict, detections: list[dict], image_ids=None, cat_ids=None) -> np.ndarray:
    """The twelve figures of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(json.loads(json.dumps(detections))), "bbox")
        if image_ids is not None:
            evaluator.params.imgIds = image_ids
        if cat_ids is not None:
            evaluator.params.catIds = cat_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def write(path, truth):
    path.write_text(json.dumps(truth))
    return path


def ours(path, detections, **arguments) -> np.ndarray:
    return np.array([evaluate_boxes(path, detections, **arguments).stats[name] for name in STAT_NAMES])


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(tmp_path, seed, capfd):
    truth, detections = make_problem(seed, per_image=(250, 20)[seed % 2])
    path = write(tmp_path / "gt.json", truth)
    expected = reference(truth, detections)
    assert 0.03 < expected[0] < 0.9
    counts = Counter((d["image_id"], d["category_id"]) for d in detections)
    assert seed % 2 or max(counts.values()) > 100
    capfd.readouterr()
    assert np.abs(ours(path, detections) - expected).max() < 1e-9
    assert capfd.readouterr() == ("", "")

    some = [picture["id"] for picture in truth["images"][:7]]
    assert (
        np.abs(ours(path, detections, image_ids=some, cat_ids=[3, 17]) - reference(truth, detections, some, [3, 17])).max()
        < 1e-9
    )


def test_more_than_100_detections_of_one_class_in_a_picture(tmp_path):
    truth, _ = make_problem(0, images=2)
    first = truth["annotations"][0]
    detections = [
        {
            "image_id": first["image_id"],
            "category_id": first["category_id"],
            "bbox": first["bbox"] if k in (99, 100) else [k, 1, 5, 5],
            "score": 0.5 if k < 130 else 0.9,
        }
        for k in range(180)
    ]
    path = write(tmp_path / "gt.json", truth)
    assert np.abs(ours(path, detections) - reference(truth, detections)).max() < 1e-9


def test_class_ap_is_the_mean_over_classes(tmp_path):
    truth, detections = make_problem(1)
    path = write(tmp_path / "gt.json", truth)
    scores = evaluate_boxes(path, detections)
    assert list(scores.class_ap) == list(CAT_IDS) and scores.class_ap[90] == -1  # no objects of it
    defined = [value for value in scores.class_ap.values() if value >= 0]
    assert scores.stats["mAP"] == pytest.approx(np.mean(defined), abs=1e-12)
    for cat_id in CAT_IDS[:4]:
        assert scores.class_ap[cat_id] == pytest.approx(reference(truth, detections, cat_ids=[cat_id])[0], abs=1e-9)


def test_nothing_found_and_nothing_to_find(tmp_path):
    truth, detections = make_problem(2)
    path = write(tmp_path / "gt.json", truth)
    nothing_found = evaluate_boxes(path, []).stats
    assert nothing_found["mAP"] == nothing_found["AR_100"] == 0 and set(nothing_found.values()) <= {0.0, -1.0}
    bare = dict(truth, annotations=[])
    path = write(tmp_path / "bare.json", bare)
    assert set(evaluate_boxes(path, detections).stats.values()) == {-1.0}
    assert set(evaluate_boxes(path, []).stats.values()) == {-1.0}
    only_crowds = dict(truth, annotations=[dict(item, iscrowd=1) for item in truth["annotations"]])
    path = write(tmp_path / "crowds.json", only_crowds)
    assert np.array_equal(ours(path, detections), reference(only_crowds, detections))


def test_annotation_id_zero_counts_as_an_object(tmp_path):
    """pycocotools marks 'unmatched' with id 0 and so never finds that object; renumbered, it gives what this gives."""
    truth, _ = make_problem(3, crowds=False)
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in truth["annotations"]
    ]
    shifted = dict(truth, annotations=[dict(a, id=a["id"] - 1) for a in truth["annotations"]])
    path = write(tmp_path / "gt.json", shifted)
    assert ours(path, perfect)[0] == pytest.approx(1.0)
    assert reference(shifted, perfect)[0] < 1.0 and reference(truth, perfect)[0] == pytest.approx(1.0)


def test_missing_area_and_crowd_flags(tmp_path):
    truth, detections = make_problem(4, crowds=False)
    full = dict(truth, annotations=[dict(a, area=a["bbox"][2] * a["bbox"][3]) for a in truth["annotations"]])
    bare = dict(
        truth, annotations=[{k: v for k, v in a.items() if k not in ("area", "iscrowd", "id")} for a in truth["annotations"]]
    )
    path = write(tmp_path / "gt.json", bare)
    assert np.abs(ours(path, detections) - reference(full, detections)).max() < 1e-9


def test_detections_of_unknown_pictures_are_an_error(tmp_path):
    truth, detections = make_problem(0)
    path = write(tmp_path / "gt.json", truth)
    with pytest.raises(UserError, match=r"gt\.json: does not hold image id 999"):
        evaluate_boxes(path, [dict(detections[0], image_id=999)])
    with pytest.raises(UserError, match="does not hold image id 1000"):
        evaluate_boxes(path, detections, image_ids=[1000])


# --- the metric --------------------------------------------------------------------------------------------------------------


def samples_of(truth: dict, detections: list[dict], names=NAMES) -> list[DataSample]:
    """What a model returns for every picture. Boxes in float32, as models have them."""
    id_to_label = {cat_id: names.index(name) for cat_id, name in zip(CAT_IDS, NAMES)}
    samples = []
    for picture in truth["images"]:
        mine = [d for d in detections if d["image_id"] == picture["id"]]
        boxes = np.array([d["bbox"] for d in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = DataSample(metainfo={"img_id": picture["id"], "ori_shape": (400, 500)})
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor([d["score"] for d in mine]),
            labels=torch.tensor([id_to_label[d["category_id"]] for d in mine], dtype=torch.long),
        )
        samples.append(sample)
    return samples


def as_float32(detections: list[dict]) -> list[dict]:
    """The detections after the way through float32 corners."""
    result = []
    for detection in detections:
        x, y, width, height = detection["bbox"]
        x1, y1, x2, y2 = np.array([x, y, x + width, y + height], dtype=np.float32).astype(float).tolist()
        result.append(dict(detection, bbox=[x1, y1, x2 - x1, y2 - y1], score=float(np.float32(detection["score"]))))
    return result


def run_metric(metric, samples, names=NAMES, batch=3, size=None):
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {"classes": names}
    for start in range(0, len(samples), batch):
        evaluator.process(data_samples=samples[start : start + batch], data_batch=None)
    return evaluator.evaluate(size or len(samples))


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_metric_equals_pycocotools(tmp_path, names):
    truth, detections = make_problem(5)
    detections.sort(key=lambda d: [p["id"] for p in truth["images"]].index(d["image_id"]))  # the order in which ties are seen
    path = write(tmp_path / "gt.json", truth)
    out = tmp_path / "deep" / "dets.json"
    result = run_metric(CocoBoxMetric(path, outfile=out), samples_of(truth, detections, names), names)
    expected = reference(truth, as_float32(detections))
    assert list(result) == [f"coco/bbox_{name}" for name in STAT_NAMES]
    assert np.abs(np.array(list(result.values())) - expected).max() < 1e-9
    assert np.abs(reference(truth, json.loads(out.read_text())) - expected).max() < 1e-9


def test_metric_does_not_depend_on_the_order_of_pictures(tmp_path):
    truth, detections = make_problem(6)
    path = write(tmp_path / "gt.json", truth)
    samples = samples_of(truth, detections)
    first = run_metric(CocoBoxMetric(path), samples)
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    assert (
        run_metric(CocoBoxMetric(path), shuffled + shuffled[:2], batch=1) == first
    )  # a sampler repeats some to fill the last round


@pytest.fixture
def logged():
    """The lines that go to MMEngine's current logger."""
    lines: list[str] = []
    logger = MMLogger.get_current_instance()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_only_evaluated_pictures_count_and_it_is_said(tmp_path, logged):
    truth, detections = make_problem(7)
    path = write(tmp_path / "gt.json", truth)
    some = [picture["id"] for picture in truth["images"][:6]]
    detections = sorted((d for d in detections if d["image_id"] in some), key=lambda d: some.index(d["image_id"]))
    result = run_metric(CocoBoxMetric(path, classwise=True), samples_of(truth, detections)[:6])
    expected = reference(truth, as_float32(detections), image_ids=some)
    assert np.abs(np.array(list(result.values())) - expected).max() < 1e-9
    assert "6 of the 12 pictures" in "\n".join(logged)
    table = logged[-1]
    assert all(name in table for name in NAMES) and "no objects" in table


def test_metric_without_detections_or_with_diverged_ones(tmp_path, logged):
    truth, detections = make_problem(8)
    path = write(tmp_path / "gt.json", truth)
    assert run_metric(CocoBoxMetric(path), samples_of(truth, []))["coco/bbox_mAP"] == 0
    samples = samples_of(truth, detections[:50])
    samples[0].pred_instances = InstanceData(
        bboxes=torch.full((2, 4), float("nan")), scores=torch.rand(2), labels=torch.zeros(2).long()
    )
    assert 0 <= run_metric(CocoBoxMetric(path), samples)["coco/bbox_mAP"] <= 1
    assert "left out 2 predictions that are not finite" in "\n".join(logged)


def _evaluate_as_rank(rank: int, store: str, path: str, truth: dict, detections: list) -> None:
    """One of two processes: evaluates the pictures that the sampler gives it and writes what it gets."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    samples = samples_of(truth, detections)
    for round_up in (True, False):
        sampler = ResumableSampler(samples, seed=0, shuffle=False, round_up=round_up)
        result = run_metric(CocoBoxMetric(path), [samples[index] for index, _ in sampler], size=len(samples))
        with open(f"{path}.{rank}.{round_up}", "w") as file:
            json.dump(result, file)
    torch.distributed.destroy_process_group()


def test_two_processes_get_the_same_values_as_one(tmp_path):
    truth, detections = make_problem(10, images=11, per_image=20)
    path = write(tmp_path / "gt.json", truth)
    expected = run_metric(CocoBoxMetric(path), samples_of(truth, detections))
    torch.multiprocessing.spawn(_evaluate_as_rank, (str(tmp_path / "store"), str(path), truth, detections), nprocs=2)
    for rank in range(2):
        for round_up in (True, False):
            assert json.loads((tmp_path / f"gt.json.{rank}.{round_up}").read_text()) == expected


def test_class_disagreements_are_explained(tmp_path):
    truth, detections = make_problem(9)
    path = write(tmp_path / "gt.json", truth)
    samples = samples_of(truth, detections)
    with pytest.raises(UserError, match=r"gt\.json: class 'beer' is not among .*Did you mean 'bee'"):
        run_metric(CocoBoxMetric(path), samples, names=("ant", "beer"))
    with pytest.raises(UserError, match="predicted label 4, but there are 2 classes"):
        run_metric(CocoBoxMetric(path), samples, names=("ant", "bee"))
    with pytest.raises(UserError, match="no such annotation file"):
        CocoBoxMetric(tmp_path / "missing.json")
