"""What the README says is true."""

import re
from pathlib import Path

from mmvit.weights import published
from mmvit.weights.figures import published_figures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_published_figures_are_those_of_the_index():
    rows = re.findall(r"^\| `(rtdetr\w*)`.*? \| (.*) \|$", README, re.M)
    assert len(rows) >= 12
    for name, cells in rows:
        entry = published(name)
        shown = [None if c.strip() in ("", "-") else float(c) for c in cells.split("|")]
        assert shown == [entry.params_m, entry.flops_g, entry.box_ap, entry.box_ap50, entry.t4_fps], name


def test_published_segmentation_figures_are_those_of_the_index():
    rows = re.findall(r"^\| `((?:segformer|upernet|vwformer)_\w*(?:ade20k|cityscapes))` \| (.*) \|$", README, re.M)
    assert len(rows) >= 30
    for name, cells in rows:
        entry = published(name)
        crop, *figures, weights = (c.strip() for c in cells.split("|"))
        shown = [None if figure == "-" else float(figure) for figure in figures]
        assert shown == [entry.params_m, entry.flops_g, entry.miou_ss, entry.miou_ms], name
        assert crop == entry.crop and weights == ("yes" if entry.url else "page"), name


def test_published_figures_of_mask_classifiers_are_those_of_the_table():
    rows = re.findall(r"^\| `(mask2former|kmax|pem)` \| `(\w+)` \| (.*) \| (?:yes|page|none) \|$", README, re.M)
    assert len(rows) >= 14
    columns = [(data, task) for data in ("coco", "ade20k", "cityscapes") for task in ("panoptic", "semantic")]
    columns[1] = ("coco", "instance")
    score = dict(panoptic="pq", instance="mask_ap", semantic="miou_ss")
    for method, backbone, cells in rows:
        for (data, task), cell in zip(columns, cells.split(" | "), strict=True):
            rows_found = published_figures(method, backbone, data, task=task)
            found = [getattr(row, score[task]) for row in rows_found if not row.variant]
            best = max((value for value in found if value is not None), default=None)
            assert best == (None if cell == "-" else float(cell)), (method, backbone, data, task)


def test_files_in_commands_exist():
    for path in re.findall(r"(?:tools|configs|demo|\.ci)/[\w/]+\.(?:py|jpg)", README):
        assert (ROOT / path).exists(), path


def test_models_in_commands_exist():
    from mmvit.architectures import is_model

    for quoted, option in re.findall(r'Predictor\("(\w+)"|--model (\w+)', README):
        assert is_model(quoted or option), quoted or option
