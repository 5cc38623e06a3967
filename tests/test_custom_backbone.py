"""The backbone of the README, in a file beside the user's config, trains in recipes of two tasks."""

import re
import sys
from pathlib import Path

import pytest
import torch
from engine_tools import CONFIGS, tiny_data, tiny_masks

from mmvit import cli, create_backbone, list_backbones
from mmvit.engine import load_config
from mmvit.errors import UserError
from mmvit.registry import MODELS

README = (Path(__file__).parents[1] / "README.md").read_text()
SOURCE = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "register_module" in block)
CONFIG = '_base_ = "{base}"\ncustom_imports = dict(imports=["my_backbone"])\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the backbone as ``my_backbone.py`` and configs that import it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_backbone.py").write_text(SOURCE)
    for recipe in ("rtdetr_shapes", "vwformer_shapes"):
        (tmp_path / f"{recipe}.py").write_text(CONFIG.format(base=CONFIGS / f"{recipe}.py"))
    yield tmp_path
    MODELS.module_dict.pop("TinyNet", None)
    sys.modules.pop("my_backbone", None)


@pytest.mark.parametrize(
    ("recipe", "make_data", "length"),
    [
        ("rtdetr_shapes", tiny_data, ["--epochs", "1", "--cfg-options", "model.arch=debug"]),
        ("vwformer_shapes", tiny_masks, ["--iters", "3"]),
    ],
)
def test_it_trains(project, capsys, recipe, make_data, length):
    data = make_data(project)
    settings = ["--data", data, "--size", 64, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--seed", 1]
    words = ["train", f"{recipe}.py", "--backbone", "tinynet_debug", *settings, "--work-dir", project / "run", *length]
    assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert list_backbones("tinynet_*") == ["tinynet_debug", "tinynet_large", "tinynet_small"]
    losses = [float(number) for number in re.findall(r"\bloss (\S+)", capsys.readouterr().out)]
    assert losses and all(0 < loss < 100 for loss in losses)
    last = max((project / "run").glob("[ei]*.pth"), key=lambda path: path.stat().st_mtime)
    checkpoint = torch.load(last, weights_only=False)
    names = {key.removeprefix("backbone.") for key in checkpoint["state_dict"] if key.startswith("backbone.")}
    assert names <= create_backbone("tinynet_debug").state_dict().keys() and "stages.3.0.weight" in names
    moments = checkpoint["optimizer"]["state"].values()
    assert moments and all(state["exp_avg"].abs().max() > 0 for state in moments)  # a gradient reached every parameter


def test_what_the_class_says_of_itself(project):
    sys.path.append(str(project))
    __import__("my_backbone")
    model = create_backbone("tinynet_small", out_strides=(8, 16, 32))
    assert model.feature_info == [(32, 8), (64, 16), (128, 32)]
    assert create_backbone("tinynet_small", out_strides=(32, 64)).feature_info == [(128, 32), (128, 64)]
    with pytest.raises(UserError, match="Did you mean 'tinynet_small'"):
        create_backbone("tinynet_smal")
    with pytest.raises(UserError, match="TinyNet has no layer depths.*num_layers"):
        model.layer_depth("stages.0.0.weight")


def test_a_module_that_is_nowhere(project):
    (project / "my_backbone.py").unlink()
    with pytest.raises(UserError, match="my_backbone"):
        load_config(project / "rtdetr_shapes.py")
