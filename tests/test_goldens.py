"""Networks, objectives and post-processing against numbers recorded from the official code."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from mmvit import check_golden

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.json")), ids=lambda p: p.stem)
def test_golden(path):
    report = check_golden.check_file(path)
    assert report.passed, report.line()


def test_fill_rule_is_the_recorded_one():
    spec = importlib.util.spec_from_file_location("fill", GOLDENS / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    for key, shape in (
        ("a.weight", [4, 3, 2]),
        ("n.weight", [5]),
        ("n.bias", [5]),
        ("n.running_var", [5]),
        ("n.running_mean", [5]),
        ("s", []),
    ):
        np.testing.assert_array_equal(check_golden.fill_values(key, shape), fill.values(key, shape))
    np.testing.assert_array_equal(check_golden.fill_image([2, 3], 7), fill.image([2, 3], 7))
    np.testing.assert_array_equal(check_golden.probe_index(1000), fill.probe_index(1000))


@pytest.fixture
def golden():
    return json.loads((GOLDENS / "rtdetr_presnet18vd.json").read_text())


def _check(golden, tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(golden))
    return check_golden.check_file(path)


def test_a_wrong_probe_fails(golden, tmp_path):
    golden["cases"] = golden["cases"][1:]
    golden["cases"][0]["outputs"]["s16"]["probes"][3] += 1e-3
    report = _check(golden, tmp_path)
    assert not report.passed and "s16 probes" in report.line()


def test_a_missing_and_an_unknown_key_fail(golden, tmp_path):
    golden["cases"] = []
    golden["filled"]["head.weight"] = [3]
    del golden["filled"]["res_layers.0.blocks.0.branch2a.conv.weight"]
    text = _check(golden, tmp_path).line()
    assert "head.weight" in text and "res_layers.0.blocks.0.branch2a.conv.weight" in text


def test_an_unused_parameter_fails(golden, tmp_path):
    golden["cases"] = golden["cases"][1:]
    golden["cases"][0]["outputs"] = {"s8": golden["cases"][0]["outputs"]["s8"]}
    golden["name"] = "rtdetr_presnet18vd"
    report = check_golden.Report("one output")

    from mmvit.backbones import create_backbone

    model = create_backbone("presnet_18vd", out_indices=(1, 2))
    check_golden.check_network(report, golden, model, model.convert, lambda m, inputs, case, r: {"s8": m(inputs[0])[0]})
    assert not report.passed and all(name.startswith(("res_layers.2", "res_layers.3")) for name in report.unused)


def test_unreadable_and_unknown_goldens(tmp_path, capsys):
    import argparse

    broken, unknown = tmp_path / "broken.json", tmp_path / "unknown.json"
    broken.write_text("{")
    unknown.write_text(json.dumps({"name": "presnett_18vd", "cases": [], "filled": {}}))
    status = check_golden.run(argparse.Namespace(files=[str(broken), str(unknown)]))
    out = capsys.readouterr().out
    assert status == 1 and "not a readable golden" in out and "Did you mean 'presnet_18vd'" in out
