"""The table of evaluated runs, from hand-made metrics.json files."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmvit.errors import UserError
from mmvit.leaderboard import add_arguments, as_csv, collect, find_files, markdown, read_run, records, reported, run, write
from mmvit.weights import published

OLD = dict(  # what the first release wrote
    config="rtdetr_r50",
    checkpoint="work_dirs/rtdetr_r50/best.pth",
    sha256="ab" * 32,
    data="data/coco/annotations/instances_val2017.json",
    images=5000,
    parameters=42_000_000,
    eval_layers=None,
    deploy=False,
    scores={"coco/bbox_mAP": 0.5302, "coco/bbox_mAP_50": 0.71},
)
SEMANTIC = dict(
    config="upernet_ade20k",
    config_hash="cd" * 32,
    task="semantic",
    arch="upernet",
    backbone="swin_tiny",
    checkpoint="work_dirs/upernet/last.pth",
    sha256="ef" * 32,
    data="ade20k",
    images=2000,
    eval_layers=None,
    deploy=False,
    slide=False,
    tta=False,
    scores={"mIoU": 0.4432, "mAcc": 0.55, "aAcc": 0.8, "IoU/PQ": 0.3, "IoU/mIoU": 0.2, "IoU/flag": None},
    parameters=59_943_000,
    flops=472.5e9,
    latency=1.25,
    input_size=[512, 512],
    device="cpu",
)


def put(folder: Path, base: dict[str, Any], name: str = "metrics.json", age: float = 0, **changes: Any) -> Path:
    """Write a report; `age`: seconds since."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({**base, **changes}))
    os.utime(path, (1.7e9 - age, 1.7e9 - age))
    return path


def only(path: Path) -> dict[str, Any]:
    (record,) = records(collect([path]))
    return record


def test_old_and_new_files_fill_one_table_beside_the_published_figures(tmp_path: Path) -> None:
    put(tmp_path / "a" / "deep", OLD)
    put(tmp_path / "b", SEMANTIC)
    first, second = records(collect([tmp_path]))
    assert (first["model"], first["dataset"], first["box_ap"], first["miou"]) == ("rtdetr_r50", "coco", 53.02, None)
    assert first["published"][0]["box_ap"] == 53.1 and first["gflops"] is first["latency_ms"] is first["device"] is None
    assert (second["model"], second["dataset"], second["miou"], second["pq"]) == ("upernet_swin_tiny", "ade20k", 44.32, None)
    assert (second["params_m"], second["gflops"], second["latency_ms"]) == (59.943, 472.5, 1250.0)
    assert [one["miou"] for one in second["published"]] == [44.51, 44.41]
    assert second["published"][0]["setting"].startswith("ImageNet-1K, 160k, 512x512, arXiv 2103.14030")


@pytest.mark.parametrize(
    "changes",
    [
        dict(data="data/shapes/annotations/instances_val.json", images=200),
        dict(data="mine/train.json"),
        dict(images=4952),
        dict(images=None),
        dict(eval_layers=3),
        dict(config="rtdetr_r51"),
        dict(arch="r50vd", backbone="hgnetv2_l"),
    ],
)
def test_nothing_is_published_for_other_data_or_models(tmp_path: Path, changes: dict[str, Any]) -> None:
    record = only(put(tmp_path, OLD, **changes))
    assert record["box_ap"] == 53.02 and record["published"] == []
    assert "published" not in markdown(collect([tmp_path]))


@pytest.mark.parametrize(
    ("changes", "model", "figure"),
    [
        (dict(config="mine", arch="r50vd_m", backbone="presnet_50vd"), "rtdetr_r50m", 51.3),
        (dict(config="mine", arch="v2_r18vd_dsp", backbone="presnet_18vd"), "rtdetrv2_r18_dsp", 47.4),
        (dict(config="mine", arch="v2_hgnetv2_h", backbone="hgnetv2_h"), "rtdetrv2_hgnetv2_h", 56.3),
        (dict(config="rtdetrv2_r18_sp1"), "rtdetrv2_r18_sp1", 47.3),
        (dict(arch="mask_rcnn", backbone="pvt_tiny", task="instance"), "mask_rcnn_pvt_tiny", 36.7),
    ],
)
def test_detectors_are_recognised(tmp_path: Path, changes: dict[str, Any], model: str, figure: float) -> None:
    record = only(put(tmp_path, OLD, **changes))
    assert record["model"] == model and record["published"][0]["box_ap"] == figure


def test_mask_classifiers_stand_beside_their_figures_of_the_same_task(tmp_path: Path) -> None:
    facts = dict(config="mine", arch="mask2former", backbone="resnet_50")
    panoptic = dict(facts, task="panoptic", data="coco", images=5000, scores={"PQ": 0.5, "coco/segm_mAP": 0.4, "mIoU": 0.6})
    record = only(put(tmp_path / "a", SEMANTIC, **panoptic))
    assert (record["model"], record["pq"], record["mask_ap"]) == ("mask2former_resnet_50", 50.0, 40.0)
    assert [(one["pq"], one["mask_ap"], one["miou"]) for one in record["published"]] == [(51.9, 41.7, 61.7)]
    semantic = dict(facts, arch="pem", backbone="stdc_1", data="cityscapes", images=500, scores={"mIoU": 0.78})
    record = only(put(tmp_path / "b", SEMANTIC, **semantic))
    assert [one["miou"] for one in record["published"]] == [78.3] and "90k, 512x1024" in record["published"][0]["setting"]
    released = published("kmax_resnet_50_ade20k_pan")
    report = dict(facts, arch="kmax", task="panoptic", data="ade20k", images=2000, checkpoint=f"cache/{released.file_name}")
    record = only(put(tmp_path / "c", SEMANTIC, **report, scores={"PQ": 0.42}))
    assert record["published"][0]["pq"] == 42.2 and record["published"][0]["setting"].startswith("kmax_resnet_50_ade20k_pan, ")


def test_a_detector_of_our_own_or_with_another_backbone_keeps_its_name(tmp_path: Path) -> None:
    shapes = dict(config="rtdetr_shapes", arch="shapes", backbone="presnet_shapes", data="shapes", images=200)
    assert only(put(tmp_path, OLD, **shapes))["model"] == "rtdetr_shapes"
    assert only(put(tmp_path, OLD, arch="r50vd", backbone="hgnetv2_l"))["model"] == "rtdetr_r50 with hgnetv2_l"


def test_the_figure_of_the_very_checkpoint_comes_first(tmp_path: Path) -> None:
    entry = published("rtdetr_r50_obj365")
    record = only(put(tmp_path, OLD, checkpoint=f"cache/{entry.file_name}"))
    assert record["published"][0]["box_ap"] == entry.box_ap == 55.3
    assert record["published"][0]["setting"].startswith("rtdetr_r50_obj365, arXiv 2304.08069")
    official, other = published("segformer_mit_b0_ade20k"), published("segformer_mit_b0_cityscapes")
    facts = dict(config="mine", arch=None, checkpoint=official.file_name)
    assert only(put(tmp_path, SEMANTIC, **facts))["published"][0]["miou"] == official.miou_ss == 37.41
    assert only(put(tmp_path, SEMANTIC, **facts | dict(checkpoint=other.file_name)))["published"] == []  # of other data


def test_test_time_augmentation_compares_with_multi_scale_figures(tmp_path: Path) -> None:
    path = put(tmp_path, SEMANTIC, arch="vwformer_city", backbone="convnext_base", data="cityscapes", images=500, tta=True)
    record = only(path)
    assert (record["model"], record["flags"], record["published"][0]["miou"]) == ("vwformer_convnext_base", ["tta"], 83.9)


def test_another_head_or_backbone_has_no_figure(tmp_path: Path) -> None:
    assert only(put(tmp_path, SEMANTIC, backbone="mit_b0"))["published"] == []
    own = only(put(tmp_path, SEMANTIC, arch=None, config="mine"))
    assert own["model"] == "mine" and own["published"] == []


def test_repeated_evaluations_collapse_to_the_newest(tmp_path: Path) -> None:
    put(tmp_path / "a", SEMANTIC, age=0, scores={"mIoU": 0.5})
    put(tmp_path / "b", SEMANTIC, age=100, scores={"mIoU": 0.6})
    put(tmp_path / "c", SEMANTIC, age=100, scores={"mIoU": 0.4}, tta=True)
    put(tmp_path / "c", SEMANTIC, "metrics_slide.json", age=100, scores={"mIoU": 0.3}, slide=True)
    put(tmp_path / "d", SEMANTIC, age=500, scores={"mIoU": 0.45}, sha256="00" * 32)
    assert [run.headline for run in collect([tmp_path])] == [50, 45, 40, 30]
    put(tmp_path / "e", SEMANTIC, age=500, date="2099-01-01T00:00:00", scores={"mIoU": 0.7})
    assert [run.headline for run in collect([tmp_path])] == [70, 45, 40, 30]


def test_the_order_is_by_task_data_and_score(tmp_path: Path) -> None:
    put(tmp_path / "1", SEMANTIC, data="cityscapes", images=500)
    put(tmp_path / "2", SEMANTIC, sha256="1")
    put(tmp_path / "3", SEMANTIC, sha256="2", scores={"mIoU": 0.6})
    put(tmp_path / "4", SEMANTIC, sha256="3", scores={"mIoU": None})
    put(tmp_path / "5", OLD, data="mine/val.json")
    put(tmp_path / "6", OLD)
    put(tmp_path / "7", OLD, task="panoptic", sha256="4", scores={"PQ": 0.4})
    runs = collect([tmp_path])
    assert [run.file.parent.name for run in runs] == ["6", "5", "7", "3", "2", "4", "1"]
    again = collect([str(tmp_path / "*" / "metrics.json"), tmp_path / "6"])
    assert markdown(again) == markdown(runs) and as_csv(again) == as_csv(runs)


def test_markdown_has_only_the_columns_that_say_something(tmp_path: Path) -> None:
    put(tmp_path / "a", SEMANTIC, config="a|b")
    text = markdown(collect([tmp_path]))
    head, rule, row, *_, note_one = text.splitlines()
    titles = [cell.strip() for cell in head.strip("|").split("|")]
    assert titles == [
        "model",
        "data (images)",
        "mIoU",
        "mIoU, published",
        "parameters (M)",
        "published parameters (M)",
        "GFLOPs",
        "latency (ms)",
        "measured at",
        "config",
        "checkpoint",
    ]
    assert rule.count("---") == len(titles)
    assert "| `upernet_swin_tiny` | ade20k (2000) | 44.32 | 44.51 (1) | 59.94 | 60 | 472.5 | 1250.0 | 512x512, cpu |" in row
    assert "a\\|b `cdcdcdcd`" in row and "last.pth `efefefef`" in row
    assert note_one.startswith("1. ImageNet-1K, 160k")


def test_files_are_written_and_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "runs" / "a", OLD)
    put(tmp_path / "runs" / "b", SEMANTIC)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(tmp_path / "runs"), "--out", str(tmp_path / "new" / "table.md")])) == 0
    shown = capsys.readouterr().out
    runs = collect([tmp_path / "runs"])
    assert (tmp_path / "new" / "table.md").read_text() == markdown(runs) + "\n"
    assert markdown(runs) in shown and "2 runs, written to" in shown
    assert json.loads((tmp_path / "new" / "table.json").read_text()) == records(runs)
    first, second = csv.DictReader(io.StringIO((tmp_path / "new" / "table.csv").read_text()))
    assert (first["box_ap"], first["published_box_ap"], first["miou"]) == ("53.02", "53.1", "")
    assert (second["miou"], second["published_miou"], second["published_params_m"]) == ("44.32", "44.51", "60")
    assert [path.name for path in write(runs, tmp_path)] == ["leaderboard.md", "leaderboard.json", "leaderboard.csv"]


def test_what_cannot_be_written_or_found(tmp_path: Path) -> None:
    path = put(tmp_path, OLD)
    with pytest.raises(UserError, match="cannot write.*--out"):
        write(collect([path]), path / "below" / "table")
    with pytest.raises(UserError, match=r"nothing\*.json does not exist.*tools/test.py"):
        find_files([str(tmp_path / "nothing*.json")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no metrics.json"):
        find_files([tmp_path / "empty"])


@pytest.mark.parametrize("text", ['{"scores": {"mIoU": 0.3', "", "[1]", '{"mIoU": 0.3}', '{"scores": 3}', "\x80"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    put(tmp_path / "good", OLD)
    bad = tmp_path / "bad" / "metrics.json"
    bad.parent.mkdir()
    bad.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        collect([tmp_path])
    assert str(bad) in str(error.value) and "tools/test.py CONFIG CHECKPOINT" in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_values_become_blanks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"scores": {"coco/bbox_mAP": NaN, "mIoU": -1, "PQ": true}, "images": "many", "flops": "1", "input_size": 3}'
    )
    one = read_run(path)
    assert set(one.scores.values()) == {None} and one.images is one.flops is one.input_size is None
    assert reported(one) == [] and one.model == tmp_path.name
    assert markdown([one]).splitlines()[-1] == f"| `{tmp_path.name}` | other (?) |"
    path.write_text('{"scores": {}, "task": "nonsense"}')
    with pytest.raises(UserError, match="no task 'nonsense'"):
        read_run(path)
