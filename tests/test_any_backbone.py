"""Any backbone in any recipe: each learns in every method, at its debug size."""

import copy
import inspect
import re

import pytest
import torch
from engine_tools import CONFIGS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmvit.backbones import list_backbones
from mmvit.data import ensure_shapes
from mmvit.data.structures import DataSample
from mmvit.engine import assemble, load_config
from mmvit.layers.drop import DropPath
from mmvit.registry import MODELS

#: Recipe -> the layout of its data, and settings that make its parts small.
RECIPES = {
    "rtdetr_shapes": (
        "",
        dict(
            neck=dict(hidden_dim=32, feedforward=32, num_heads=2),
            head=dict(hidden_dim=32, num_heads=2, feedforward=32, num_layers=2, num_queries=20, num_denoising=8),
        ),
    ),
    "mask_rcnn_shapes": ("", {}),
    "upernet_shapes": ("ade20k", dict(decode_head=dict(channels=16), auxiliary_head=dict(channels=8))),
    "vwformer_shapes": ("ade20k", dict(decode_head=dict(channels=64))),
    "kmax_shapes": ("panoptic", dict(criterion=dict(num_points=(64, 64)))),
    "pem_shapes": ("panoptic", dict(criterion=dict(num_points=112))),
}

#: Parameters that shift what a softmax or a norm behind them shifts back: their gradients are rounding errors, at times zero.
SHIFTS = re.compile(r"\.pos\.pos3\.2\.bias$|\.mixer\.pre_norm\.bias$")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder with two pictures of 96 pixels in all layouts."""
    layouts = ("coco", "ade20k", "panoptic")
    return ensure_shapes(tmp_path_factory.mktemp("any") / "shapes", train=2, val=2, size=96, layouts=layouts, seed=5)


@pytest.fixture(autouse=True)
def scope():
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmvit"):
        yield


def recipe(name, backbone, shapes):
    """The config of a short training with `backbone`."""
    layout, small = RECIPES[name]
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg.merge_from_dict(dict(model=copy.deepcopy(small)))
    data = shapes / layout if layout == "ade20k" else shapes
    return assemble(cfg, data=data, backbone=backbone, size=64, batch_size=2, workers=0, device="cpu", work_dir="unused")


@torch.no_grad()
def wake(model):
    """What stops gradients at times: layers that start at zero get small values, and no branch is dropped."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0


def total_loss(model, batch):
    torch.manual_seed(1)
    losses = model(**copy.deepcopy(batch), mode="loss")
    return sum(value for key, value in losses.items() if "loss" in key)


def gradients(model, batch):
    """The loss of a batch, and the gradient of every parameter (None where there is none)."""
    model.zero_grad()
    total = total_loss(model, batch)
    total.backward()
    return total.detach(), {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def picture(height, width):
    sample = DataSample(metainfo=dict(img_id=0, ori_shape=(height, width), img_shape=(height, width), scale_factor=(1.0, 1.0)))
    return dict(inputs=[torch.randint(0, 256, (3, height, width), dtype=torch.uint8)], data_samples=[sample])


@pytest.mark.parametrize("backbone", list_backbones("*_debug"))
@pytest.mark.parametrize("name", RECIPES)
def test_any_backbone_learns_in_any_recipe(name, backbone, shapes):
    cfg = recipe(name, backbone, shapes)
    model = MODELS.build(cfg.model).train()
    wake(model)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    batch = model.data_preprocessor(batch, training=True)
    total_loss(model, batch)  # norms that fade have two parts from the second step on
    state = copy.deepcopy(model.state_dict())
    total, found = gradients(model, batch)
    assert torch.isfinite(total)
    without = [n for n, g in found.items() if g is None or not (g.abs().max() > 0 or SHIFTS.search(n))]
    assert not without and all(torch.isfinite(g).all() for g in found.values()), without

    if "with_cp" in inspect.signature(type(model.backbone).__init__).parameters:
        model.load_state_dict(state)
        model.backbone.with_cp = True
        again, checkpointed = gradients(model, batch)
        torch.testing.assert_close(again, total)
        scale = max(float(g.abs().max()) for g in found.values())
        for key, gradient in checkpointed.items():
            torch.testing.assert_close(gradient, found[key], rtol=1e-3, atol=1e-5 * scale, msg=key)

    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer.update_params(total_loss(model, batch))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(p, before[key]) for key, p in model.backbone.named_parameters(prefix="backbone"))

    model.eval()
    twin = MODELS.build(cfg.model).eval()
    twin.load_state_dict(model.state_dict())
    odd = model.data_preprocessor(picture(71, 101))["inputs"]
    with torch.no_grad():
        first, second, third = (flat(net(odd, mode="tensor")) for net in (model, model, twin))
    assert first and all(torch.isfinite(x).all() for x in first)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))


def flat(outputs):
    """All tensors of nested outputs."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [x for part in parts for x in flat(part)]
