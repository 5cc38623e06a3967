"""Mean IoU equals cityscapesscripts' and mmseg's, memory does not grow, and the pictures show what they should."""

from __future__ import annotations

import json
import logging
import math
import resource
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from PIL import Image

from mmvit.data import DataSample, ResumableSampler, make_palette
from mmvit.errors import UserError
from mmvit.evaluation import (
    ConfusionMatrix,
    SemanticMetric,
    WorstImages,
    confusion_picture,
    count_pixels,
    draw_gallery,
    picture_miou,
    segmentation,
)
from mmvit.evaluation.legend import colourise, draw_legend

Pair = tuple[np.ndarray, np.ndarray]  # prediction, label


def blocks(rng: np.random.Generator, classes: int, shape: tuple[int, int] = (48, 80)) -> Pair:
    """A label of rectangles with an ignored region and ignored specks, and a prediction that is right on most pixels."""
    label = np.kron(rng.integers(0, classes, (6, 8)), np.ones((shape[0] // 6, shape[1] // 8))).astype(np.uint8)
    pred = np.where(rng.random(label.shape) < 0.8, label, rng.integers(0, classes, label.shape)).astype(np.uint8)
    label[:10, 5:30] = 255
    label[rng.random(label.shape) < 0.05] = 255
    return pred, label


def brute_force(pairs: list[Pair], classes: int, ignore: int = 255) -> np.ndarray:
    counts = np.zeros((classes, classes), np.int64)
    for pred, label in pairs:
        for p, t in zip(pred.ravel().tolist(), label.ravel().tolist()):
            if t != ignore:
                counts[t, p] += 1
    return counts


def matrix_of(pairs: list[Pair], classes: int, **options: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes, **options)
    for pred, label in pairs:
        matrix.update(pred, label)
    return matrix


# ---- the matrix


def test_three_classes_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
    pred = np.array([[0, 0, 1, 1], [1, 0, 2, 1]], np.uint8)
    matrix = ConfusionMatrix(3)
    own = matrix.update(pred, label)
    assert matrix.counts.tolist() == own.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = matrix.scores()
    np.testing.assert_array_equal(scores["IoU"], [0.5, 0.5, np.nan])  # 2 / (3 + 3 - 2)
    np.testing.assert_array_equal(scores["Acc"], [2 / 3, 2 / 3, np.nan])
    assert scores["mIoU"] == 0.5 and scores["mAcc"] == pytest.approx(2 / 3) and scores["aAcc"] == pytest.approx(4 / 6)
    matrix.update(np.full((1, 2), 2, np.uint8), np.zeros((1, 2), np.uint8))  # now class 2 is predicted, and wrong
    scores = matrix.scores()
    np.testing.assert_allclose(scores["IoU"], [2 / 6, 0.5, 0])
    assert scores["mIoU"] == pytest.approx((2 / 6 + 0.5) / 3) and math.isnan(scores["Acc"][2])
    assert scores["mAcc"] == pytest.approx((2 / 5 + 2 / 3) / 2)


def test_score_of_a_picture_is_over_the_classes_in_its_label() -> None:
    counts = count_pixels(np.array([[0, 0, 2, 1]], np.uint8), np.array([[0, 0, 0, 1]], np.uint8), 3)
    assert picture_miou(counts) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(picture_miou(np.zeros((3, 3), np.int64)))


@pytest.mark.parametrize("seed", range(3))
def test_equals_cityscapesscripts(tmp_path: Path, seed: int) -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import labels

    train_ids = {label.trainId: label for label in labels if 0 <= label.trainId < 255}
    void = [label.id for label in labels if label.id >= 0 and label.ignoreInEval]
    to_id = np.array([train_ids[i].id for i in range(19)], np.uint8)
    rng = np.random.default_rng(seed)
    pairs = [blocks(rng, 7 + 6 * seed) for _ in range(3)]  # with few classes some never occur
    pairs.append((np.full((48, 80), 3, np.uint8), np.full((48, 80), 255, np.uint8)))  # nothing counts
    pairs.append((np.full((48, 80), 18, np.uint8), np.zeros((48, 80), np.uint8)))  # all wrong, by a class that may not occur
    files: dict[str, list[str]] = {"pred": [], "label": []}
    for number, (pred, label) in enumerate(pairs):
        ids = np.where(label == 255, rng.choice(void, label.shape), to_id[np.minimum(label, 18)])
        for kind, values in (("pred", to_id[pred]), ("label", ids)):
            files[kind].append(str(tmp_path / f"{kind}_{number}_labelIds.png"))
            Image.fromarray(values.astype(np.uint8)).save(files[kind][-1])
    args = official.args
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    expected = official.evaluateImgLists(files["pred"], files["label"], args)
    scores = matrix_of(pairs, 19).scores()
    assert abs(scores["mIoU"] - expected["averageScoreClasses"]) < 1e-9 and 0.1 < scores["mIoU"] < 0.9
    theirs = [expected["classScores"][train_ids[i].name] for i in range(19)]
    np.testing.assert_allclose(scores["IoU"], theirs, rtol=0, atol=1e-9, equal_nan=True)
    assert np.isnan(theirs).any() == (seed < 2)


@pytest.fixture(scope="module")
def mmseg_metric():
    from mmseg.evaluation.metrics.iou_metric import IoUMetric

    import mmvit.registry  # noqa: F401 - stands in for mmcv's compiled operators

    return IoUMetric


@pytest.mark.parametrize("classes", [2, 19, 150])
def test_equals_mmseg(mmseg_metric, classes: int) -> None:
    rng = np.random.default_rng(classes)
    pairs = [blocks(rng, max(2, classes - 1)) for _ in range(4)]
    parts = [
        mmseg_metric.intersect_and_union(torch.from_numpy(p).long(), torch.from_numpy(t).long(), classes, 255) for p, t in pairs
    ]
    areas = [sum(part).double() for part in zip(*parts)]
    expected = mmseg_metric.total_area_to_metrics(*areas)
    scores = matrix_of(pairs, classes).scores()
    for key in ("IoU", "Acc", "aAcc"):
        np.testing.assert_allclose(scores[key], expected[key], rtol=0, atol=1e-9)
    assert scores["mIoU"] == pytest.approx(np.nanmean(expected["IoU"]), abs=1e-9)


def test_three_times_faster_than_mmseg(mmseg_metric) -> None:
    """All that the metric does for a picture of 1024 x 2048, against the counting alone of the other."""
    pred, label = blocks(np.random.default_rng(0), 19, (1020, 2048))
    metric = SemanticMetric()
    metric.dataset_meta = {"classes": [str(i) for i in range(19)]}
    ours = best_time(lambda: metric.process(None, [sample_of(pred, label, 1)]))
    tensors = torch.from_numpy(pred), torch.from_numpy(label)
    assert 3 * ours < best_time(lambda: mmseg_metric.intersect_and_union(*tensors, 19, 255))


def best_time(function) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("dtypes", [(np.uint8, np.uint8), (np.int16, np.uint8), (np.int64, np.int32), (np.uint8, np.int64)])
def test_integers_of_any_kind(dtypes: tuple[type, type]) -> None:
    pred, label = blocks(np.random.default_rng(3), 5)
    expected = brute_force([(pred, label)], 5)
    np.testing.assert_array_equal(matrix_of([(pred.astype(dtypes[0]), label.astype(dtypes[1]))], 5).counts, expected)
    turned = pred.astype(dtypes[0]).T, label.astype(dtypes[1]).T  # not contiguous
    np.testing.assert_array_equal(matrix_of([turned], 5).counts, expected)


@pytest.mark.parametrize("classes, ignore", [(256, -1), (300, -1), (300, 65535), (1000, 65535)])
def test_more_classes_than_a_byte_holds(classes: int, ignore: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, (40, 50))
    pred = np.where(rng.random(label.shape) < 0.5, label, rng.integers(0, classes, label.shape)).astype(np.int16)
    label[5] = ignore
    label[0, 0], pred[0, 0] = classes - 1, classes - 1
    expected = brute_force([(pred, label)], classes, ignore)
    np.testing.assert_array_equal(matrix_of([(pred, label)], classes, ignore_index=ignore).counts, expected)


def test_large_pictures_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, label = blocks(np.random.default_rng(1), 9)
    expected = brute_force([(pred, label)], 9)
    for name in ("_EXACT", "_WIDE"):
        monkeypatch.setattr(segmentation, name, 333)
    np.testing.assert_array_equal(count_pixels(pred, label, 9), expected)
    np.testing.assert_array_equal(count_pixels(pred, np.where(label == 255, -7, label.astype(int)), 9, -7), expected)
    monkeypatch.setattr(segmentation, "_EXACT", 3)  # less than a row
    np.testing.assert_array_equal(count_pixels(pred, label, 9), expected)


def test_counts_beyond_single_precision_are_exact() -> None:
    ones = np.ones((4097, 4096), np.uint8)  # 2**24 + 4096 pixels; float32 has no odd numbers there
    ones[0, 0] = 0
    assert count_pixels(ones, np.ones_like(ones), 2).tolist() == [[0, 0], [1, 2**24 + 4095]]


@pytest.mark.parametrize(
    "pred, label, message",
    [
        ([[0, 1]], [[0, 7]], r"street\.png: 1 pixels are labelled .* \(row 0, column 1\) as 7\. There are 3 classes"),
        ([[0, 3]], [[0, 1]], r"street\.png: 1 pixels are predicted .* as 3\..* disagree on the number of classes"),
        ([[0, -1]], [[0, 1]], "as -1"),
        ([[0, 700]], [[0, 1]], "as 700"),
        ([[0, 1]], [[-1, 1]], r"labelled .* \(row 0, column 0\) as -1"),
        ([[0, 1, 2]], [[0, 1]], r"street\.png: the prediction has shape \(1, 3\), the label \(1, 2\)"),
    ],
)
def test_what_is_no_class_is_an_error(pred: list, label: list, message: str) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(UserError, match=message):
        matrix.update(np.array(pred), np.array(label), "street.png")
    assert not matrix.counts.any()


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    assert count_pixels(np.array([[0, 200]], np.uint8), np.array([[0, 255]], np.uint8), 3).sum() == 1
    assert count_pixels(np.array([[0, 2000]]), np.array([[0, 255]]), 3).sum() == 1


def test_matrices_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="ignore_index 255 is one of the 300 classes"):
        ConfusionMatrix(300)
    with pytest.raises(UserError, match="at least one class"):
        ConfusionMatrix(0)
    with pytest.raises(UserError, match="of 3 and 4 classes"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))


def test_merging_adds_and_empty_matrices_have_no_scores() -> None:
    rng = np.random.default_rng(0)
    pairs = [blocks(rng, 4) for _ in range(4)]
    merged = matrix_of(pairs[:1], 4).merge(matrix_of(pairs[1:], 4))
    np.testing.assert_array_equal(merged.counts, matrix_of(pairs, 4).counts)
    scores = ConfusionMatrix(4).scores()
    assert all(math.isnan(scores[key]) for key in ("mIoU", "mAcc", "aAcc"))


# ---- the metric

NAMES = tuple("abcde")


def sample_of(pred: np.ndarray, label: np.ndarray, number: int | str) -> DataSample:
    """What a model returns for a picture."""
    meta = {"img_id": number, "img_path": f"folder/{number}.jpg", "ori_shape": label.shape}
    sample = DataSample(metainfo=meta)
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(label)[None])
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(pred)[None])
    return sample


def samples_and_pairs(count: int = 7) -> tuple[list[DataSample], list[Pair]]:
    rng = np.random.default_rng(5)
    pairs = [blocks(rng, 4) for _ in range(count)]
    return [sample_of(*pair, f"p{number}") for number, pair in enumerate(pairs)], pairs


def run_metric(metric: SemanticMetric, samples: list, size: int | None = None, batch: int = 3) -> dict[str, float]:
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {"classes": NAMES}
    for start in range(0, len(samples), batch):
        evaluator.process(data_samples=samples[start : start + batch], data_batch=None)
    return evaluator.evaluate(len(samples) if size is None else size)


def test_metric_gives_the_scores_of_all_pictures() -> None:
    samples, pairs = samples_and_pairs()
    metric = SemanticMetric()
    result = run_metric(metric, samples)
    scores = matrix_of(pairs, 5).scores()
    assert list(result) == ["mIoU", "mAcc", "aAcc", *(f"IoU/{name}" for name in NAMES)]
    assert [result[key] for key in ("mIoU", "mAcc", "aAcc")] == [scores[key] for key in ("mIoU", "mAcc", "aAcc")]
    np.testing.assert_array_equal([result[f"IoU/{name}"] for name in NAMES], scores["IoU"])
    assert math.isnan(result["IoU/e"]) and all(type(value) is float for value in result.values())
    few = run_metric(metric, samples[:2])  # nothing is left of the first evaluation
    assert few["mIoU"] == matrix_of(pairs[:2], 5).scores()["mIoU"]
    assert list(run_metric(SemanticMetric(prefix="val"), samples))[0] == "val/mIoU"


def test_order_and_repeated_pictures_change_nothing() -> None:
    samples, _ = samples_and_pairs()
    expected = repr(run_metric(SemanticMetric(), samples))
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    assert repr(run_metric(SemanticMetric(), shuffled + shuffled[:2], size=7, batch=1)) == expected


def test_samples_learn_their_score() -> None:
    samples, pairs = samples_and_pairs(2)
    expected = [picture_miou(count_pixels(*pair, 5)) for pair in pairs]
    metric = SemanticMetric()
    metric.dataset_meta = {"classes": NAMES}
    metric.process(None, samples)
    assert [sample.miou for sample in samples] == metric.batch_miou == expected
    plain = [sample.to_dict() for sample in samples_and_pairs(2)[0]]
    metric.process(None, plain[:1])
    assert metric.batch_miou == expected[:1] and plain[0]["miou"] == expected[0]


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


def test_table_picture_and_missing_pictures(tmp_path: Path, logged: list[str]) -> None:
    samples, _ = samples_and_pairs()
    result = run_metric(SemanticMetric(classwise=True, out_dir=tmp_path / "deep"), samples, size=9)
    assert Image.open(tmp_path / "deep" / "confusion.png").width > 200 and len(list((tmp_path / "deep").iterdir())) == 1
    assert "7 of 9 pictures were evaluated" in "\n".join(logged)
    assert f"{result['IoU/a']:.3f}" in logged[-1] and all(name in logged[-1] for name in NAMES)
    nothing = run_metric(SemanticMetric(), [])
    assert math.isnan(nothing["mIoU"]) and math.isnan(nothing["IoU/a"])


def test_metric_explains_what_is_missing() -> None:
    samples, _ = samples_and_pairs(1)
    metric = SemanticMetric()
    with pytest.raises(UserError, match="does not say what its classes are"):
        metric.process(None, samples)
    metric.dataset_meta = {"classes": NAMES[:3]}
    with pytest.raises(UserError, match=r"folder/p0\.jpg: \d+ pixels are labelled"):
        metric.process(None, samples)
    del samples[0].gt_sem_seg
    with pytest.raises(UserError, match=r"folder/p0\.jpg: was loaded without a label: put LoadSemanticMask"):
        metric.process(None, samples)


def test_memory_does_not_grow_with_the_number_of_pictures() -> None:
    """2,000 pictures of 510 x 1024 need what ten need, but for their names; the process as a whole, too."""
    pairs = [blocks(np.random.default_rng(seed), 4, (510, 1024)) for seed in range(3)]
    metric = SemanticMetric()
    metric.dataset_meta = {"classes": NAMES}
    traced, resident = [], []
    tracemalloc.start()
    for number in range(2000):
        metric.process(None, [sample_of(*pairs[number % 3], number).to_dict()])
        if number in (9, 1999):
            traced.append(tracemalloc.get_traced_memory()[0])
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 and traced[1] - traced[0] < 1e6 and resident[1] - resident[0] < 50_000
    assert metric.evaluate(2000)["mIoU"] > 0.5


def _evaluate_as_rank(rank: int, store: str, out: str) -> None:
    """One of two processes: evaluates the pictures that the sampler gives it and writes what it gets."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    samples, _ = samples_and_pairs()
    results = {}
    for round_up in (True, False):
        order = [index for index, _ in ResumableSampler(samples, seed=0, shuffle=False, round_up=round_up)]
        results[str(round_up)] = run_metric(SemanticMetric(out_dir=out), [samples[i] for i in order], size=len(samples))
    results["one"] = run_metric(SemanticMetric(), samples[:1])  # both have the same picture
    results["none"] = run_metric(SemanticMetric(), samples if rank else [])
    try:
        run_metric(SemanticMetric(), samples[:3])
    except UserError as error:
        results["twice"] = str(error)
    Path(f"{out}/{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_two_processes_get_the_same_values_as_one(tmp_path: Path) -> None:
    samples, _ = samples_and_pairs()
    assert len(samples) % 2  # one process gets a picture again with round_up
    expected, one = (json.loads(json.dumps(run_metric(SemanticMetric(), some))) for some in (samples, samples[:1]))
    torch.multiprocessing.spawn(_evaluate_as_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        for key in ("True", "False", "none"):
            assert repr(results[key]) == repr(expected)
        assert repr(results["one"]) == repr(one)
        assert "p0" in results["twice"] and "round_up=False" in results["twice"]
    assert (tmp_path / "confusion.png").exists()


# ---- pictures


def test_confusion_picture_shows_shares_of_rows(tmp_path: Path) -> None:
    matrix = ConfusionMatrix(3)
    matrix.counts[:] = [[100, 0, 0], [0, 0, 5000], [0, 0, 0]]
    confusion_picture(matrix, ("road", "sky", "absent"), tmp_path / "few.png")
    image = np.asarray(Image.open(tmp_path / "few.png").convert("RGB")).astype(int)
    dark = (image[..., 2] - image[..., 0] > 60) & (image[..., 2] < 140)  # the blue of shares near 1
    rows, columns = np.nonzero(dark[:, : image.shape[1] * 3 // 4])  # without the colour bar
    top = rows < (rows.min() + rows.max()) / 2
    assert columns[top].mean() < columns[~top].mean() - 40 and abs(top.mean() - 0.5) < 0.1
    for count in (150, 400):
        confusion_picture(
            np.eye(count, dtype=np.int64), [f"a rather long class name {i}" for i in range(count)], tmp_path / "x.png"
        )
        assert max(Image.open(tmp_path / "x.png").size) < 3000


def test_colours_of_classes_and_of_ignored_pixels() -> None:
    palette = make_palette(3)
    image = colourise(np.array([[0, 2, 255, 77]], np.uint8), palette)
    assert image.tolist() == [[list(palette[0]), list(palette[2]), [0, 0, 0], [0, 0, 0]]]
    wide = colourise(np.array([[0, 299, -1]], np.int16), make_palette(300))
    assert wide.tolist() == [[list(make_palette(300)[0]), list(make_palette(300)[299]), [0, 0, 0]]]


def test_legend_wraps_and_counts_what_it_leaves_out() -> None:
    entries = [(f"class {i}", (10 * i, 0, 255 - 10 * i)) for i in range(20)]

    def colours(image: np.ndarray) -> int:
        found = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
        return sum(colour in found for _, colour in entries)

    wide, narrow = draw_legend(entries, width=800), draw_legend(entries, width=90)
    assert wide.shape[1] == 800 and narrow.shape[1] == 90 and len(narrow) > 3 * len(wide)
    assert colours(wide) == colours(narrow) == 20
    beside = draw_legend(entries, height=200)
    assert len(beside) <= 200 and colours(beside) == 20
    assert draw_legend(entries, width=300, rows=2).shape == draw_legend(entries[:1], width=300, rows=2).shape
    assert 1 < colours(draw_legend(entries, width=300, rows=2)) < 20
    assert colours(draw_legend(entries, width=3)) == 0 or draw_legend(entries, width=3).shape[1] == 3  # no room: no error
    assert draw_legend([], width=50).shape[1] == 50


def test_the_worst_pictures_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.permutation(20) / 20
    pairs = [blocks(rng, 4) for _ in scores]
    worst = WorstImages(3)
    for number, (score, (pred, label)) in enumerate(zip(scores, pairs)):
        worst.add(f"{number}.jpg", torch.from_numpy(label)[None], pred.astype(np.int16), float(score))
    worst.add("nothing to score.jpg", pairs[0][1], pairs[0][0], float("nan"))
    worst.add(f"{int(scores.argmin())}.jpg", pairs[0][1], pairs[0][0], 0.0)  # again
    items = worst.items()
    assert [item["img_path"] for item in items] == [f"{i}.jpg" for i in np.argsort(scores)[:3]]
    for item, index in zip(items, np.argsort(scores)):
        np.testing.assert_array_equal(item["pred"], pairs[index][0])
        np.testing.assert_array_equal(item["label"], pairs[index][1])
        assert item["score"] == scores[index] and item["pred"].dtype == np.int16 and item["label"].dtype == np.uint8
    parts = [WorstImages(3), WorstImages(3)]
    for number, (score, (pred, label)) in enumerate(zip(scores, pairs)):
        parts[number % 2].add(f"{number}.jpg", label, pred, float(score))
    merged = parts[0].merge(parts[1])
    assert [item["img_path"] for item in merged.items()] == [item["img_path"] for item in items] and len(merged) == 3
    with pytest.raises(UserError, match="one picture or more"):
        WorstImages(0)


def test_gallery_shows_picture_label_and_prediction(tmp_path: Path) -> None:
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    items = []
    for number, (shape, score) in enumerate((((40, 80), 0.5), ((90, 30), 0.25))):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((*shape, 3), (200, 100 + number, 0), np.uint8)).save(path)
        label, pred = np.full(shape, number, np.uint8), np.full(shape, 2, np.uint8)
        label[0] = 255
        items.append({"img_path": str(path), "label": label, "pred": pred, "score": score})
    draw_gallery(items, tmp_path / "out" / "gallery.png", ("red", "green", "blue"), palette, cell=120)
    image = np.asarray(Image.open(tmp_path / "out" / "gallery.png"))
    assert image.shape[1] == 3 * 120 + 4 * 8

    def where(colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        return np.nonzero((image == colour).all(axis=2))

    first, second = where((200, 101, 0)), where((200, 100, 0))
    assert len(first[0]) == 40 * 120 and len(second[0]) == 60 * 120 and first[0].max() < second[0].min()  # the worst first
    for colour, row, column in ((palette[1], first, 1), (palette[0], second, 1), (palette[2], second, 2)):
        rows, columns = where(colour)
        inside = (rows >= row[0].min()) & (rows <= row[0].max())
        assert inside.sum() > 2000 and (columns[inside] // 128 == column).all()
    assert len(where((0, 0, 0))[0]) > 100  # ignored pixels
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png does not exist"):
        draw_gallery(items, tmp_path / "gallery.png", ("red", "green", "blue"), palette)
