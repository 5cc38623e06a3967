"""What the README says is true."""

import re
from pathlib import Path

import pytest
import torch

import mmvit
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


@pytest.mark.parametrize("recipe", ["rtdetr_r18", "rtdetrv2_r18"])
def test_the_backbone_of_the_readme_trains(recipe):
    source = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "register_module" in block)
    if not mmvit.list_backbones("tinynet_*"):
        exec(compile(source, "README.md", "exec"), {"__name__": "readme_example"})
    assert mmvit.list_backbones("tinynet_*") == ["tinynet_large", "tinynet_small"]
    from test_rtdetr import batch, losses_of

    model = mmvit.create_model(
        recipe,
        num_classes=5,
        backbone="tinynet_small",
        neck=dict(hidden_dim=16, feedforward=16, num_heads=2),
        head=dict(hidden_dim=16, num_heads=2, feedforward=16, num_layers=2, num_queries=10),
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(8):
        torch.manual_seed(0)
        loss = sum(losses_of(model, batch()).values())
        totals.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert totals[-1] < totals[0]
    assert all(p.grad is not None for p in model.backbone.stages[1:].parameters())
