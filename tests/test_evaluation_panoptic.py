"""Panoptic quality equals cityscapesscripts' and its definition; mask AP equals pycocotools'; instance AP is Cityscapes'."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import sys
import tracemalloc
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_tool
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic_tool
from cityscapesscripts.helpers.labels import labels as CITYSCAPES
from cityscapesscripts.helpers.labels import name2label
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmvit.benchmark.panoptic import benchmark_panoptic, panoptic_table
from mmvit.data import ResumableSampler
from mmvit.data.panoptic_files import ids_to_rgb, read_panoptic, rgb_to_ids
from mmvit.errors import UserError
from mmvit.evaluation import (
    CityscapesInstanceMetric,
    CocoBoxMetric,
    PanopticMetric,
    PanopticQuality,
    evaluate_cityscapes_instances,
    evaluate_masks,
    evaluate_panoptic,
    match_segments,
    write_panoptic,
)
from mmvit.evaluation.boxes import STAT_NAMES

CATEGORIES = [
    {"id": label.id, "name": label.name, "isthing": int(label.hasInstances)} for label in CITYSCAPES if not label.ignoreInEval
]
CAT_IDS = [category["id"] for category in CATEGORIES]
NAMES = [category["name"] for category in CATEGORIES]
THINGS = [k for k, category in enumerate(CATEGORIES) if category["isthing"]]


# -- the definition, segment by segment ----------------------------------------------------------------------------------------


def brute_force(pictures) -> dict[str, np.ndarray]:
    """PQ, SQ and RQ by class of ``(gt ids, gt segments, pred ids, pred segments)``; NaN for classes that do not occur."""
    tp, fp, fn, total = (np.zeros(len(CAT_IDS)) for _ in range(4))
    for gt_ids, gt_segments, pred_ids, pred_segments in pictures:
        void = gt_ids == 0
        found, matched = set(), set()
        for gt in gt_segments:
            if gt["iscrowd"]:
                continue
            for pred in pred_segments:
                if pred["category_id"] != gt["category_id"]:
                    continue
                one, other = gt_ids == gt["id"], pred_ids == pred["id"]
                iou = (one & other).sum() / (one | (other & ~void)).sum()
                if iou > 0.5:
                    k = CAT_IDS.index(gt["category_id"])
                    tp[k] += 1
                    total[k] += iou
                    found.add(gt["id"])
                    matched.add(pred["id"])
        for gt in gt_segments:
            if not gt["iscrowd"] and gt["id"] not in found:
                fn[CAT_IDS.index(gt["category_id"])] += 1
        for pred in pred_segments:
            if pred["id"] in matched:
                continue
            excuse = void.copy()
            crowds = [gt["id"] for gt in gt_segments if gt["iscrowd"] and gt["category_id"] == pred["category_id"]]
            if crowds:
                excuse |= gt_ids == crowds[-1]
            mine = pred_ids == pred["id"]
            if (mine & excuse).sum() / mine.sum() <= 0.5:
                fp[CAT_IDS.index(pred["category_id"])] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = tp + fp / 2 + fn / 2
        sq = np.where(tp > 0, total / tp, np.where(whole > 0, 0, np.nan))
        return {"PQ": total / whole, "SQ": sq, "RQ": tp / whole}


def random_picture(seed: int, size=(48, 64), cells: int = 24, noise: float = 0.01):
    """Ground truth in cells, some void, some crowds; a prediction that shifts, joins, splits, relabels and leaves out cells."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    centres = rng.random((cells, 2)) * size
    cell = ((grid[:, :, None] - centres) ** 2).sum(axis=-1).argmin(axis=-1)
    ids = rng.choice(np.arange(1, 2**24), cells, replace=False)
    category = rng.choice(CAT_IDS[8:], cells)
    void, crowd = rng.random(cells) < 0.2, rng.random(cells) < 0.2
    gt_ids = np.where(void, 0, ids)[cell]
    gt = [
        {"id": int(ids[k]), "category_id": int(category[k]), "iscrowd": int(crowd[k]), "area": int((gt_ids == ids[k]).sum())}
        for k in rng.permutation(cells)
        if not void[k]
    ]
    source = np.arange(cells)
    joined = rng.random(cells) < 0.15
    source[joined] = rng.integers(0, cells, joined.sum())
    pred_ids = np.roll(source[cell], rng.integers(0, 4, 2), axis=(0, 1)) + 1
    pred_ids[(rng.random(cells) < 0.15)[pred_ids - 1]] = 0
    halved = (rng.random(cells + 1) < 0.15)[pred_ids] & (pred_ids > 0) & (grid[..., 0] % 8 < 3)
    pred_ids[halved] += cells
    pred_ids[rng.random(size) < noise] = 0
    label = np.where(rng.random(2 * cells) < 0.85, np.tile(category, 2), rng.choice(CAT_IDS[8:], 2 * cells))
    pred = [{"id": int(k), "category_id": int(label[k - 1])} for k in rng.permutation(np.unique(pred_ids[pred_ids > 0]))]
    return gt_ids, gt, pred_ids, pred


def labelled(segments):
    return [{**segment, "label": CAT_IDS.index(segment["category_id"])} for segment in segments]


def counted(pictures) -> PanopticQuality:
    quality = PanopticQuality(len(CAT_IDS))
    for gt_ids, gt, pred_ids, pred in pictures:
        quality.update(gt_ids, labelled(gt), pred_ids, labelled(pred))
    return quality


def write(folder: Path, pictures, ids=None) -> list[Path]:
    """The files of ground truth and prediction: ``[gt.json, gt/, pred.json, pred/]``."""
    ids = ids or list(range(len(pictures)))
    for name, position in (("gt", 0), ("pred", 2)):
        annotations = []
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image_id, picture in zip(ids, pictures):
            Image.fromarray(ids_to_rgb(picture[position])).save(folder / name / f"{image_id}.png")
            annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": picture[position + 1]})
        content = {"annotations": annotations} | ({"categories": CATEGORIES} if name == "gt" else {})
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [folder / "gt.json", folder / "gt", folder / "pred.json", folder / "pred"]


def by_cityscapes(gt_json: Path, gt_dir: Path, pred_json: Path, pred_dir: Path) -> dict[str, float]:
    """The scores of cityscapesscripts under our names; 0 for classes that do not occur."""
    truth, found = (json.loads(path.read_text()) for path in (gt_json, pred_json))
    categories = {category["id"]: category for category in CATEGORIES}
    by_image = {item["image_id"]: item for item in found["annotations"]}
    pairs = [(item, by_image[item["image_id"]]) for item in truth["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):
        counts = panoptic_tool.pq_compute_single_core(0, pairs, gt_dir, pred_dir, categories)
    scores = {}
    for suffix, things in (("", None), ("_th", True), ("_st", False)):
        with contextlib.suppress(ZeroDivisionError):  # no class of this kind
            mean, by_class = counts.pq_average(categories, things)
            scores |= {f"{key.upper()}{suffix}": mean[key] for key in ("pq", "sq", "rq")}
            scores |= {
                f"{key.upper()}/{categories[k]['name']}": value
                for k, values in by_class.items()
                for key, value in values.items()
            }
    return scores


def assert_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for key, value in theirs.items():
        assert np.nan_to_num(ours[key]) == pytest.approx(value, abs=1e-9), key
    for key in set(ours) - set(theirs):
        assert math.isnan(ours[key]), key


# -- panoptic quality ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_equals_cityscapesscripts_and_the_definition(tmp_path, seed):
    pictures = [random_picture(100 * seed + k) for k in range(4)]
    files = write(tmp_path, pictures)
    ours = evaluate_panoptic(*files, processes=1)
    assert 0.05 < ours["PQ"] < 0.95 and list(ours)[:9] == [
        f"{key}{s}" for s in ("", "_th", "_st") for key in ("PQ", "SQ", "RQ")
    ]
    assert_same(ours, by_cityscapes(*files))
    quality = counted(pictures)
    for key, expected in brute_force(pictures).items():
        np.testing.assert_allclose(quality.class_scores()[key], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose([ours[f"{key}/{name}"] for name in NAMES], expected, rtol=0, atol=1e-9)
        assert ours[key] == pytest.approx(np.nanmean(expected), abs=1e-9)
        assert ours[f"{key}_th"] == pytest.approx(np.nanmean(expected[THINGS]), abs=1e-9)
    assert quality.fp.sum() and quality.fn.sum() and quality.tp.sum()


LETTERS = {"c": "car", "d": "car", "b": "bus", "s": "sky", "r": "road"}  # capital letters are crowds


def scene(gt: str, pred: str, unseen: str = ""):
    """A picture of one row, a letter for each pixel: `.` is void, `x` not listed. unseen: listed without a pixel."""

    def read(text: str) -> np.ndarray:
        return np.array([[0 if letter == "." else ord(letter) for letter in text]])

    def segments(text: str) -> list[dict]:
        return [
            {"id": ord(letter), "category_id": name2label[LETTERS[letter.lower()]].id, "iscrowd": int(letter.isupper())}
            for letter in dict.fromkeys(text)
            if letter.lower() in LETTERS
        ]

    truth = [{**item, "area": gt.count(chr(item["id"]))} for item in segments(gt + unseen)]
    return read(gt), truth, read(pred), segments(pred)


#: name -> (picture, {class: (tp, fp, fn, sum of IoU)})
HAND_MADE = {
    "identical": (scene("ccss", "ccss"), {"car": (1, 0, 0, 1), "sky": (1, 0, 0, 1)}),
    "nothing predicted": (scene("ccss", "...."), {"car": (0, 0, 1, 0), "sky": (0, 0, 1, 0)}),
    "nothing there": (scene("....", "ccs."), {}),
    "nothing at all": (scene("....", "...."), {}),
    "stuff only": (scene("rrss", "rrrs"), {"road": (1, 0, 0, 2 / 3), "sky": (0, 1, 1, 0)}),
    "an IoU of one half is no match": (scene("ccss", "c..."), {"car": (0, 1, 1, 0), "sky": (0, 0, 1, 0)}),
    "an IoU above one half is one": (scene("cccs", "cc.."), {"car": (1, 0, 0, 2 / 3), "sky": (0, 0, 1, 0)}),
    "another class": (scene("ccss", "bbss"), {"car": (0, 0, 1, 0), "bus": (0, 1, 0, 0), "sky": (1, 0, 0, 1)}),
    "found twice": (scene("cccc", "cccd"), {"car": (1, 1, 0, 3 / 4)}),
    "two found as one": (scene("ccddd", "ccccc"), {"car": (1, 0, 1, 3 / 5)}),
    "void is not in the union": (scene("cc..", "cccc"), {"car": (1, 0, 0, 1)}),
    "by half on void": (scene("ss..", "cccc"), {"sky": (0, 0, 1, 0), "car": (0, 1, 0, 0)}),
    "by more than half on void": (scene("s...", "cccc"), {"sky": (0, 0, 1, 0)}),
    "a crowd is not missed": (scene("CCss", "..ss"), {"sky": (1, 0, 0, 1)}),
    "a crowd is not matched": (scene("CCCC", "cccc"), {}),
    "on a crowd of another class": (scene("CCCC", "bbbb"), {"bus": (0, 1, 0, 0)}),
    "on void and crowd": (scene("CCC.ssss", "cccccc.."), {"sky": (0, 0, 1, 0)}),
    "by half on a crowd": (scene("CCss", "cccc"), {"sky": (0, 0, 1, 0), "car": (0, 1, 0, 0)}),
    "on the first of two crowds": (scene("CCD", "ccd"), {"car": (0, 1, 0, 0)}),
    "a segment that is not in the map": (scene("cc", "cc", unseen="d"), {"car": (1, 0, 1, 1)}),
    "an id that is not listed": (scene("ccx", "ccc"), {"car": (1, 0, 0, 2 / 3)}),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_hand_made(tmp_path, case):
    picture, expected = HAND_MADE[case]
    quality = counted([picture])
    table = {
        name: (int(tp), int(fp), int(fn), pytest.approx(iou, abs=1e-12))
        for name, tp, fp, fn, iou in zip(NAMES, quality.tp, quality.fp, quality.fn, quality.iou)
        if tp + fp + fn
    }
    assert table == expected
    for key, values in brute_force([picture]).items():
        np.testing.assert_allclose(quality.class_scores()[key], values, rtol=0, atol=1e-9)
    files = write(tmp_path, [picture])
    ours = evaluate_panoptic(*files)
    assert_same(ours, by_cityscapes(*files) if expected else {})
    assert math.isnan(ours["PQ"]) == (not expected)


def test_given_areas_count_as_in_the_tools(tmp_path):
    gt_ids, gt, pred_ids, pred = scene("cccs", "cc.s")
    larger = [{**segment, "area": segment["area"] + 2} for segment in gt]
    files = write(tmp_path, [(gt_ids, larger, pred_ids, pred)])
    assert_same(evaluate_panoptic(*files), by_cityscapes(*files))
    assert evaluate_panoptic(*files)["PQ/car"] == 0
    bare = [{key: value for key, value in segment.items() if key != "area"} for segment in gt]
    assert counted([(gt_ids, bare, pred_ids, pred)]).iou[NAMES.index("car")] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match=r"ground truth\): segment id 99 has an area of 1, but more pixels in the map"):
        counted([(gt_ids, [{**gt[0], "area": 1}], pred_ids, pred)])


def test_colours_are_as_good_as_ids():
    gt_ids, gt, pred_ids, pred = random_picture(5)
    expected = match_segments(gt_ids, labelled(gt), pred_ids, labelled(pred), 19).counts
    assert np.array_equal(rgb_to_ids(ids_to_rgb(gt_ids)), gt_ids) and gt_ids.max() > 2**16
    for kind in (np.int32, np.uint32, np.int64):
        given = match_segments(gt_ids.astype(kind), labelled(gt), pred_ids.astype(np.int32), labelled(pred), 19)
        assert np.array_equal(given.counts, expected)
    mixed = match_segments(ids_to_rgb(gt_ids), labelled(gt), np.asfortranarray(pred_ids), labelled(pred), 19)
    assert np.array_equal(mixed.counts, expected)
    both = match_segments(ids_to_rgb(gt_ids), labelled(gt), ids_to_rgb(pred_ids), labelled(pred), 19)
    assert np.array_equal(both.counts, expected)


def test_processes_do_not_change_a_bit(tmp_path):
    files = write(tmp_path, [random_picture(k, size=(20, 30), cells=12) for k in range(18)])
    one, three = (evaluate_panoptic(*files, processes=n) for n in (1, 3))
    assert one.keys() == three.keys()
    assert np.array_equal(list(one.values()), list(three.values()), equal_nan=True)
    (tmp_path / "pred" / "11.png").unlink()
    with pytest.raises(UserError, match=r"image id 11: its panoptic map .*11\.png does not exist"):
        evaluate_panoptic(*files, processes=2)


def test_counts_of_parts_add_up():
    pictures = [random_picture(k) for k in range(4)]
    whole = counted(pictures)
    parts = counted(pictures[:1]).merge(counted(pictures[1:]))
    assert np.array_equal(parts.counts[:3], whole.counts[:3]) and np.allclose(parts.iou, whole.iou, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="19 and 3 classes cannot be added"):
        whole.merge(PanopticQuality(3))


WRONG = {
    "id without segment": (lambda item: item["segments_info"].pop(), r"id \d+ is in the map but not in segments_info"),
    "segment without pixels": (
        lambda item: item["segments_info"].append({"id": 9999, "category_id": 26}),
        "segment id 9999 is in segments_info but has no pixel",
    ),
    "unknown category": (lambda item: item["segments_info"][0].update(category_id=4), "unknown category id 4"),
    "no category": (lambda item: item["segments_info"][0].pop("category_id"), "unknown category id None"),
    "id twice": (
        lambda item: item["segments_info"].append(dict(item["segments_info"][0])),
        r"holds segment id \d+ twice",
    ),
    "no id": (lambda item: item["segments_info"][0].update(id="car"), "'car' is no id of a segment"),
    "id of void": (lambda item: item["segments_info"][0].update(id=0), "0 is no id of a segment"),
    "missing PNG": (lambda item: item.update(file_name="gone.png"), r"panoptic map .*gone\.png does not exist"),
    "grey PNG": (lambda item: item.update(file_name="grey.png"), r"grey\.png has pixels of mode L"),
    "another size": (lambda item: item.update(file_name="large.png"), r"shape \(50, 64\S* .*ground truth \(48, 64"),
    "no picture": (lambda item: item.update(file_name="text.png"), r"text\.png is empty or not a picture"),
    "truncated": (lambda item: item.update(file_name="cut.png"), r"cut\.png is damaged or truncated"),
    "another picture": (lambda item: item.update(image_id=7), r"no prediction of image id 1 \(1 of 2 pictures"),
    "twice": (lambda item: item.update(image_id=0), "holds image id 0 twice"),
    "no file name": (lambda item: item.pop("file_name"), "entry 1 of 'annotations' has no 'file_name'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_predictions_are_explained(tmp_path, case):
    change, message = WRONG[case]
    files = write(tmp_path, [random_picture(0), random_picture(1)])
    folder = tmp_path / "pred"
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "grey.png")
    Image.fromarray(ids_to_rgb(np.full((50, 64), 1))).save(folder / "large.png")
    (folder / "text.png").write_text("nothing")
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:300])
    content = json.loads(files[2].read_text())
    change(content["annotations"][1])
    files[2].write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        evaluate_panoptic(*files)
    assert any(place in str(caught.value) for place in ("image id 1", "pred.json"))


def test_wrong_files_are_explained(tmp_path):
    files = write(tmp_path, [random_picture(0)])
    with pytest.raises(UserError, match=r"none\.json: no such panoptic file"):
        evaluate_panoptic(tmp_path / "none.json", None, *files[2:])
    with pytest.raises(UserError, match="no such folder"):
        evaluate_panoptic(files[0], tmp_path / "maps", *files[2:])
    with pytest.raises(UserError, match=r"pred\.json: has no 'categories'"):
        evaluate_panoptic(*files[2:], *files[2:])
    content = json.loads(files[0].read_text())
    del content["categories"][2]["isthing"]
    files[0].write_text(json.dumps(content))
    with pytest.raises(UserError, match="'building' has no 'isthing'"):
        evaluate_panoptic(*files)
    files[0].write_text(json.dumps({"annotation": []}))
    with pytest.raises(UserError, match="has no list 'annotations'. Did you mean 'annotation'"):
        evaluate_panoptic(*files)


def test_wrong_labels_are_explained():
    gt_ids, gt, pred_ids, pred = random_picture(0)
    with pytest.raises(UserError, match=r"street\.png \(prediction\): segment id \d+ has label 18, but there are 18 classes"):
        match_segments(gt_ids, [], pred_ids, [{**item, "label": 18} for item in pred], 18, "street.png")
    with pytest.raises(UserError, match="names for counts of 19 classes"):
        counted([]).scores(NAMES[:3], [])


def test_written_files_are_read_back(tmp_path):
    pictures = [random_picture(k) for k in range(2)]
    results = [
        {"image_id": k, "file_name": f"street/{k}.jpg", "ids": pred_ids, "segments_info": [{**s, "score": 0.5} for s in pred]}
        for k, (_, _, pred_ids, pred) in enumerate(pictures)
    ]
    write_panoptic(tmp_path / "out", tmp_path / "deep" / "out.json", iter(results), CATEGORIES)
    source = read_panoptic(tmp_path / "deep" / "out.json", tmp_path / "out")
    assert list(source.categories) == CATEGORIES and source[1]["file_name"] == "street/1.png"
    for k, (_, _, pred_ids, pred) in enumerate(pictures):
        assert np.array_equal(source.read_ids(source[k]), pred_ids)
        for written, segment in zip(source[k]["segments_info"], pred):
            rows, columns = np.nonzero(pred_ids == segment["id"])
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert written == {**segment, "score": 0.5, "iscrowd": 0, "area": len(rows), "bbox": box}
    files = (tmp_path / "deep" / "out.json", tmp_path / "out")
    scores = evaluate_panoptic(*files, *files)
    assert scores["PQ"] == 1 and json.loads(files[0].read_text())["images"][1] == {
        "id": 1,
        "file_name": "street/1.jpg",
        "height": 48,
        "width": 64,
    }
    with pytest.raises(UserError, match=r"image id 0: id \d+ is in the map but not in segments_info"):
        write_panoptic(tmp_path / "bad", tmp_path / "bad.json", [{**results[0], "segments_info": []}])
    assert not (tmp_path / "bad.json").exists()


# -- the metric of the runner --------------------------------------------------------------------------------------------------


def sample(key, pred_ids, pred, order=None) -> dict:
    """What the runner hands to metrics; label k is class ``order[k]``."""
    order = CAT_IDS if order is None else order
    segments = [{"id": s["id"], "label": order.index(s["category_id"]), "score": 0.7} for s in pred]
    data = torch.from_numpy(pred_ids.astype(np.int32))[None]
    return {"img_id": key, "pred_panoptic_seg": {"data": data}, "segments_info": segments}


def run_metric(metric, samples, meta, batch=2, size=None) -> dict:
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = meta
    for start in range(0, len(samples), batch):
        evaluator.process(data_samples=samples[start : start + batch], data_batch=None)
    return evaluator.evaluate(size or len(samples))


META = {"classes": NAMES, "cat_ids": CAT_IDS, "things": THINGS}


def approx(scores: dict[str, float]) -> dict:
    return {key: pytest.approx(value, abs=1e-12, nan_ok=True) for key, value in scores.items()}


def expected_of(files) -> dict:
    """What the metric gives, by the files."""
    scores = evaluate_panoptic(*files, processes=1)
    return approx({key: value for key, value in scores.items() if not key.startswith(("SQ/", "RQ/"))})


def test_metric_equals_the_evaluation_of_files(tmp_path):
    pictures = [random_picture(k) for k in range(5)]
    keys = [f"frankfurt_00000{k}" for k in range(5)]
    files = write(tmp_path, pictures, keys)
    samples = [sample(key, *picture[2:]) for key, picture in zip(keys, pictures)]
    result = run_metric(PanopticMetric(files[0], classwise=True), samples + samples[:1], META)
    assert result == expected_of(files) and list(result)[0] == "PQ"

    order = CAT_IDS[::-1]
    reordered = [sample(key, *picture[2:], order) for key, picture in zip(keys, pictures)]
    for meta in ({"classes": NAMES[::-1], "cat_ids": order}, {"classes": NAMES[::-1]}):
        assert run_metric(PanopticMetric(*files[:2]), reordered, meta, batch=1) == expected_of(files)
    assert "val/PQ" in run_metric(PanopticMetric(files[0], prefix="val"), samples, META)


def test_metric_can_be_run_again(tmp_path):
    pictures = [random_picture(k) for k in range(3)]
    files = write(tmp_path, pictures)
    metric = PanopticMetric(files[0])
    samples = [sample(k, *picture[2:]) for k, picture in enumerate(pictures)]
    empty = [sample(k, np.zeros_like(picture[2]), []) for k, picture in enumerate(pictures)]
    assert run_metric(metric, empty, META)["PQ"] == 0
    assert run_metric(metric, samples, META) == expected_of(files)


def test_metric_keeps_nothing_of_the_pictures(tmp_path):
    pictures = [random_picture(k, size=(100, 200)) for k in range(6)]
    files = write(tmp_path, pictures)
    metric = PanopticMetric(files[0])
    metric.dataset_meta = META

    def add(k: int) -> None:
        metric.process(None, [sample(k, *pictures[k][2:])])

    add(0)
    add(1)
    gc.collect()
    tracemalloc.start()
    for k in range(2, 6):
        add(k)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 20_000  # a map has 80 000 bytes


def test_metric_explains_what_is_wrong(tmp_path):
    gt_ids, _, pred_ids, pred = picture = random_picture(0)
    files = write(tmp_path, [picture])
    good = sample(0, pred_ids, pred)
    cases = [
        ({**good, "img_id": 5}, META, r"gt\.json: has no annotation of image id 5"),
        ({"img_id": 0}, META, "image id 0: the model predicts no panoptic segments"),
        ({**good, "segments_info": good["segments_info"][1:]}, META, r"image id 0 \(prediction\): id \d+ is in the map"),
        (sample(0, pred_ids[:-1], pred), META, "image id 0: the predicted map has shape"),
        (
            good,
            {"classes": NAMES[:18], "cat_ids": CAT_IDS[:18]},
            "19 categories, the dataset 18 classes; category id 33 is in one",
        ),
        (good, {"classes": ["buss", *NAMES[1:]]}, "class 'buss' is not among the file's categories. Did you mean 'bus'"),
    ]
    for item, meta, message in cases:
        with pytest.raises(UserError, match=message):
            run_metric(PanopticMetric(files[0]), [item], meta)


def _evaluate_as_rank(rank: int, store: str, folder: str, pictures: list) -> None:
    """One of two processes: evaluates the pictures that the sampler gives it and writes what it gets."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    samples = [sample(k, *picture[2:]) for k, picture in enumerate(pictures)]
    for round_up in (True, False):
        sampler = ResumableSampler(samples, seed=0, shuffle=False, round_up=round_up)
        chosen = [samples[index] for index, _ in sampler]
        result = run_metric(PanopticMetric(f"{folder}/gt.json"), chosen, META, size=len(samples))
        Path(f"{folder}/{rank}.{round_up}").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def test_two_processes_get_the_same_values_as_one(tmp_path):
    pictures = [random_picture(k, size=(30, 40)) for k in range(5)]
    files = write(tmp_path, pictures)
    torch.multiprocessing.spawn(_evaluate_as_rank, (str(tmp_path / "store"), str(tmp_path), pictures), nprocs=2)
    for rank in range(2):
        for round_up in (True, False):
            assert json.loads((tmp_path / f"{rank}.{round_up}").read_text()) == expected_of(files)


def test_benchmark_beside_cityscapesscripts():
    result = benchmark_panoptic(rounds=1, size=(160, 320))
    assert result["gap"] < 1e-9 and all(row["seconds"] > 0 for row in result["rows"].values())
    assert "cityscapesscripts evalPanopticSemanticLabeling" in panoptic_table(result)


# -- mask AP -------------------------------------------------------------------------------------------------------------------

SIZE = (220, 300)
COCO_IDS = (1, 3, 7)
COCO_NAMES = ("ant", "bee", "cow")


def blob(rng: np.random.Generator) -> np.ndarray:
    """A polygon (n, 2) in the picture."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 12)))
    radius = np.exp(rng.uniform(np.log(4), np.log(110))) * rng.uniform(0.6, 1, len(angles))
    centre = rng.uniform(0, 1, 2) * SIZE[::-1]
    points = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    return np.clip(points, 0, np.array(SIZE[::-1]) - 1)


def encode(mask: np.ndarray) -> dict:
    return reference_masks.encode(np.asfortranarray(mask, np.uint8))


def mask_of(rle: dict) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools under NumPy 2
        return reference_masks.decode(rle)


def uncompressed(mask: np.ndarray) -> dict:
    """The RLE with counts as a list, as crowds have it in COCO's files."""
    flat = mask.T.reshape(-1).astype(int)
    ends = np.append(np.flatnonzero(np.diff(flat)) + 1, flat.size)
    counts = np.diff(np.append(0, ends)).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def mask_problem(seed: int) -> tuple[dict, list[dict]]:
    """A COCO file with polygons, RLE and crowds, and results with masks (RLE, counts as text) and boxes."""
    rng = np.random.default_rng(seed)
    images = [{"id": 5 * k + 2, "file_name": f"{k}.jpg", "height": SIZE[0], "width": SIZE[1]} for k in range(8)]
    annotations, results = [], []
    for image in images:
        for _ in range(rng.integers(0, 8)):
            parts = [blob(rng) for _ in range(rng.integers(1, 3))]
            rle = reference_masks.merge(reference_masks.frPyObjects([p.reshape(-1).tolist() for p in parts], *SIZE))
            mask = mask_of(rle)
            if not mask.any():
                continue
            crowd = bool(rng.random() < 0.2)
            category = int(rng.choice(COCO_IDS))
            shape = uncompressed(mask) if crowd else [part.reshape(-1).tolist() for part in parts]
            facts = {"image_id": image["id"], "category_id": category, "segmentation": shape, "iscrowd": int(crowd)}
            facts |= {"id": len(annotations) + 1, "area": float(mask.sum()), "bbox": reference_masks.toBbox(rle).tolist()}
            annotations.append(facts)
            for _ in range(rng.integers(0, 4)):
                moved = cv2.warpAffine(mask, np.float32([[1, 0, rng.normal(0, 2)], [0, 1, rng.normal(0, 2)]]), SIZE[::-1])
                found = category if rng.random() < 0.8 else int(rng.choice(COCO_IDS))
                results.append((image["id"], found, encode(moved), round(float(rng.beta(3, 2)), 2)))
        for _ in range(6):
            points = np.rint(blob(rng)).astype(np.int32)
            stray = cv2.fillPoly(np.zeros(SIZE, np.uint8), [points], 1)
            results.append((image["id"], int(rng.choice(COCO_IDS)), encode(stray), round(float(rng.beta(2, 4)), 2)))
    categories = [{"id": identity, "name": name} for identity, name in zip(COCO_IDS, COCO_NAMES)]
    detections = [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": reference_masks.toBbox(rle).tolist(),
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
            "score": float(np.float32(score)),
        }
        for image_id, category, rle, score in results
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def by_pycocotools(truth: dict, detections: list[dict], kind: str) -> np.ndarray:
    left_out = "bbox" if kind == "segm" else "segmentation"
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        found = gt.loadRes([{key: value for key, value in item.items() if key != left_out} for item in detections])
        evaluator = COCOeval(gt, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("seed", range(4))
def test_mask_ap_equals_pycocotools(tmp_path, seed, capfd):
    truth, detections = mask_problem(seed)
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(truth))
    expected = by_pycocotools(truth, detections, "segm")
    assert 0.1 < expected[0] < 0.9 and expected[3:6].min() >= 0  # all sizes occur
    capfd.readouterr()
    stats = evaluate_masks(path, detections).stats
    assert capfd.readouterr() == ("", "")
    assert np.abs(np.array([stats[name] for name in STAT_NAMES]) - expected).max() < 1e-9


def coco_samples(truth: dict, detections: list[dict]) -> list[dict]:
    samples = []
    for image in truth["images"]:
        mine = [item for item in detections if item["image_id"] == image["id"]]
        boxes = np.array([item["bbox"] for item in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [dict(item["segmentation"], counts=item["segmentation"]["counts"].encode()) for item in mine]
        instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor([item["score"] for item in mine]),
            labels=torch.tensor([COCO_IDS.index(item["category_id"]) for item in mine], dtype=torch.long),
            masks=masks,
        )
        samples.append({"img_id": image["id"], "pred_instances": instances.to_dict()})
    return samples


def test_coco_metric_gives_box_and_mask_ap(tmp_path):
    truth, detections = mask_problem(9)
    order = [image["id"] for image in truth["images"]]
    detections.sort(key=lambda item: order.index(item["image_id"]))  # the order in which ties are seen
    path, out = tmp_path / "gt.json", tmp_path / "out.json"
    path.write_text(json.dumps(truth))
    samples = coco_samples(truth, detections)
    metric = CocoBoxMetric(path, iou_types=("bbox", "segm"), outfile=out, classwise=True)
    result = run_metric(metric, samples, {"classes": COCO_NAMES})
    assert list(result) == [f"coco/{kind}_{name}" for kind in ("bbox", "segm") for name in STAT_NAMES]
    for kind in ("bbox", "segm"):
        expected = by_pycocotools(truth, detections, kind)
        assert np.abs(np.array([result[f"coco/{kind}_{name}"] for name in STAT_NAMES]) - expected).max() < 1e-9
        written = json.loads(out.read_text())
        assert np.abs(by_pycocotools(truth, written, kind) - expected).max() < 1e-9
    assert result["coco/bbox_mAP"] != result["coco/segm_mAP"]
    only_masks = run_metric(CocoBoxMetric(path, iou_types="segm"), samples, {"classes": COCO_NAMES})
    assert only_masks == {key: value for key, value in result.items() if "segm" in key}
    assert set(run_metric(CocoBoxMetric(path), samples, {"classes": COCO_NAMES})) == {k for k in result if "bbox" in k}


def test_coco_metric_keeps_masks_as_rle(tmp_path):
    truth, detections = mask_problem(3)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    metric = CocoBoxMetric(tmp_path / "gt.json", iou_types=["segm"])
    metric.process(None, coco_samples(truth, detections))
    sizes = [len(counts) for result in metric.results for counts in result[4][1]]
    assert len(sizes) == len(detections) and max(sizes) < SIZE[0] * SIZE[1] / 32


def test_wrong_masks_are_explained(tmp_path):
    truth, detections = mask_problem(0)
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(truth))
    samples = coco_samples(truth, detections)
    first = next(item for item in samples if len(item["pred_instances"]["masks"]) > 1)
    instances = first["pred_instances"]
    small = encode(np.ones((10, 10)))
    cases = [
        ({key: value for key, value in instances.items() if key != "masks"}, "the model predicts no masks"),
        ({**instances, "masks": [np.ones(SIZE)] * len(instances["masks"])}, "mask is ndarray, not a COCO RLE"),
        ({**instances, "masks": instances["masks"][1:]}, "predicted masks of sizes"),
        ({**instances, "masks": [small] * len(instances["masks"])}, r"predicted mask \(size \[10, 10\]\) is no compressed RLE"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=f"image id {first['img_id']}: .*{message}"):
            run_metric(CocoBoxMetric(path, iou_types=["segm"]), [{**first, "pred_instances": wrong}], {"classes": COCO_NAMES})
    for kinds, message in ((["mask"], "'mask' is none of 'bbox', 'segm'"), ([], "iou_types is empty")):
        with pytest.raises(UserError, match=message):
            CocoBoxMetric(path, iou_types=kinds)
    truth["annotations"][3]["segmentation"] = []
    path.write_text(json.dumps(truth))
    with pytest.raises(UserError, match="'segmentation' of annotation id 4 .* is neither a list of polygons"):
        evaluate_masks(path, detections)


# -- Cityscapes' instance AP ---------------------------------------------------------------------------------------------------


def street(seed: int, size=(120, 200)):
    """Ids as in ``*_gtFine_instanceIds.png``, and predictions ``(masks bool, names, scores)``."""
    rng = np.random.default_rng(seed)
    ids = np.full(size, 7, np.int32)
    ids[:20], ids[-10:] = 23, 1
    masks, names, scores = [], [], []
    for number in range(10):
        name = str(rng.choice(["car", "person", "bicycle", "caravan"], p=[0.5, 0.3, 0.15, 0.05]))
        height, width = rng.integers(6, 50, 2)
        top, left = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        group = rng.random() < 0.2
        ids[top : top + height, left : left + width] = name2label[name].id * (1 if group else 1000) + (0 if group else number)
        for _ in range(rng.integers(0, 4)):
            mask = np.zeros(size, bool)
            y, x = np.maximum(0, np.array([top, left]) + rng.integers(-4, 5, 2))
            mask[y : y + height, x : x + width] = True
            masks.append(mask)
            names.append(name if rng.random() < 0.85 else "road")
            scores.append(round(float(rng.random()), 2))
    masks.append(np.zeros(size, bool))
    return ids, masks, [*names, "car"], [*scores, 0.5]


def write_street(folder: Path, stem: str, ids: np.ndarray) -> Path:
    path = folder / stem.split("_")[0] / f"{stem}_gtFine_instanceIds.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path)
    return path


def by_instance_tool(folder: Path, streets: list, truths: list[Path], monkeypatch) -> dict:
    """The averages of cityscapesscripts for files written as its documentation says."""
    listings = []
    for number, (_, masks, names, scores) in enumerate(streets):
        lines = []
        for k, (mask, name, score) in enumerate(zip(masks, names, scores)):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}_{k}.png")
            lines.append(f"{number}_{k}.png {name2label[name].id} {score}")
        listings.append(folder / f"{number}.txt")
        listings[-1].write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(folder)  # the tool leaves matches.json there
    monkeypatch.setattr(instance_tool.args, "quiet", True)
    monkeypatch.setattr(instance_tool.args, "JSONOutput", False)
    monkeypatch.setattr(instance_tool.args, "predictionPath", str(folder))
    monkeypatch.setattr(instance_tool.args, "gtInstancesFile", str(folder / "gtInstances.json"))
    with np.errstate(all="ignore"):
        return instance_tool.evaluateImgLists([str(p) for p in listings], [str(p) for p in truths], instance_tool.args)[
            "averages"
        ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_instance_ap_equals_cityscapesscripts(tmp_path, monkeypatch, capfd):
    stems = [f"ulm_00000{k}_000019" for k in range(4)]
    streets = [street(k) for k in range(4)]
    truths = [write_street(tmp_path / "val", stem, item[0]) for stem, item in zip(stems, streets)]
    (tmp_path / "reference").mkdir()
    expected = by_instance_tool(tmp_path / "reference", streets, truths, monkeypatch)
    assert 0.05 < expected["allAp"] < 0.95
    capfd.readouterr()
    ours = evaluate_cityscapes_instances(
        {"truth": truth, "masks": [encode(mask) for mask in masks], "names": names, "scores": scores}
        for truth, (_, masks, names, scores) in zip(truths, streets)
    )
    assert capfd.readouterr() == ("", "")
    assert ours["AP"] == pytest.approx(expected["allAp"], abs=1e-9)
    assert ours["AP50"] == pytest.approx(expected["allAp50%"], abs=1e-9)
    for name, values in expected["classes"].items():
        assert ours[f"AP/{name}"] == pytest.approx(values["ap"], abs=1e-9, nan_ok=True)
    assert math.isnan(ours["AP/train"])

    samples = [
        {
            "img_path": f"leftImg8bit/val/ulm/{stem}_leftImg8bit.png",
            "pred_instances": {
                "masks": [encode(mask) for mask in masks],
                "scores": torch.tensor(scores, dtype=torch.float64),
                "labels": torch.tensor([NAMES.index(name) if name in NAMES else 0 for name in names]),
            },
        }
        for stem, (_, masks, names, scores) in zip(stems, streets)
    ]
    result = run_metric(CityscapesInstanceMetric(tmp_path / "val"), samples + samples[:1], {"classes": NAMES}, size=4)
    wanted = approx({f"cityscapes/instance_{key}": value for key, value in ours.items()})
    assert result == wanted and "cityscapes/instance_AP50" in result

    monkeypatch.delattr(np, "in1d", raising=False)  # as in NumPy 2.4, which the tool was not written for
    assert run_metric(CityscapesInstanceMetric(tmp_path / "val"), samples, {"classes": NAMES}) == wanted
    assert not hasattr(np, "in1d")


def test_wrong_instances_are_explained(tmp_path, monkeypatch):
    ids, masks, names, scores = street(0)
    truth = write_street(tmp_path, "ulm_000000_000019", ids)
    good = {"truth": truth, "masks": [encode(mask) for mask in masks], "names": names, "scores": scores}
    cases = [
        (dict(truth=tmp_path / "none.png"), r"none\.png: no such ground truth"),
        (dict(names=["cart", *names[1:]]), "'cart' is no class of Cityscapes. Did you mean 'car'"),
        (dict(masks=[encode(np.ones((3, 4)))] * len(masks)), r"size \(3, 4\)|mask \(3, 4\)"),
        (dict(scores=[math.nan, *scores[1:]]), "score is nan"),
        (dict(scores=scores[1:]), "Give as many of each"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate_cityscapes_instances([good | change])
    with pytest.raises(UserError, match=r"holds no \*_gtFine_instanceIds\.png"):
        CityscapesInstanceMetric(tmp_path / "nothing")
    metric = CityscapesInstanceMetric(tmp_path)
    for meta, item, message in (
        ({}, {}, "does not say what its classes are"),
        ({"classes": NAMES}, {"img_path": "bonn_1_leftImg8bit.png", "pred_instances": {}}, "there is no bonn_1_gtFine"),
        ({"classes": NAMES}, {"img_path": "ulm_000000_000019.png", "pred_instances": {}}, "the model predicts no masks"),
    ):
        metric.dataset_meta = meta
        with pytest.raises(UserError, match=message):
            metric.process(None, [item])
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation", None)
    with pytest.raises(UserError, match="pip install cityscapesscripts"):
        CityscapesInstanceMetric(tmp_path)
