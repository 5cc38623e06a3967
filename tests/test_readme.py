"""What the README says is true."""

import re
from pathlib import Path

from mmvit.weights import published

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


def test_files_in_commands_exist():
    for path in re.findall(r"(?:tools|configs|demo|\.ci)/[\w/]+\.(?:py|jpg)", README):
        assert (ROOT / path).exists(), path


def test_models_in_commands_exist():
    from mmvit.architectures import is_model

    for quoted, option in re.findall(r'Predictor\("(\w+)"|--model (\w+)', README):
        assert is_model(quoted or option), quoted or option
