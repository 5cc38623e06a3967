"""The published dense recipes of the backbone families: what `--backbone` makes of a config."""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from engine_tools import CONFIGS, tiny_data
from mmengine.model import BaseModule

from mmvit.backbones import find_backbone, list_backbones
from mmvit.engine import assemble, load_config
from mmvit.engine.optim import ParamRuleConstructor
from mmvit.engine.recipes import apply_backbone_recipe, set_backbone
from mmvit.layers.drop import DropPath
from mmvit.registry import MODELS
from mmvit.weights import published_figures
from mmvit.weights.catalogue import backbones as published_weights

UPERNET, DETECTOR, PVT = (6e-5, 0.01), (1e-4, 0.05), (2e-4, 1e-4)  # learning rate, weight decay
#: Config -> lines of backbones, their rates of stochastic depth (-: none is published), learning rate, weight decay and, where
#: it is used, layer-wise decay.
RECIPES = {
    "upernet_ade20k": [
        ("agent_swin_t agent_swin_s agent_swin_b", "0.3 0.3 0.5", UPERNET),
        ("crossformer_s crossformer_b crossformer_l crossformerpp_s crossformerpp_b", "0.2 0.3 0.5 0.2 0.3", UPERNET),
        ("cswin_tiny cswin_small cswin_base cswin_large", "0.3 0.4 0.6 -", UPERNET),
        ("nat_mini nat_tiny nat_small nat_base", "0.2 0.3 0.5 0.5", UPERNET),
        ("dinat_mini dinat_tiny dinat_small dinat_base dinat_large", "0.2 0.3 0.5 0.5 0.3", UPERNET),
        ("dinat_s_tiny dinat_s_small dinat_s_base dinat_s_large", "0.3 0.3 0.3 0.3", UPERNET),
        ("hornet_tiny_7x7 hornet_tiny_gf hornet_small_7x7 hornet_small_gf", "0.4 0.4 0.3 0.3", (1e-4, 0.05, 0.9)),
        ("hornet_base_7x7 hornet_base_gf", "0.4 0.5", (1e-4, 0.05, 0.9)),
        ("hornet_large_7x7 hornet_large_gf", "0.4 0.4", (1e-4, 0.05, 0.8)),
        ("iformer_small", "-", UPERNET),
        ("nextvit_small nextvit_base nextvit_large", "0.2 0.2 0.2", UPERNET),
        ("smt_s smt_b", "0.2 0.3", UPERNET),
        ("unireplknet_t", "0.2", (1e-4, 0.05, 1.0)),
        ("unireplknet_s unireplknet_b", "0.3 0.3", (1e-4, 0.05, 0.9)),
        ("unireplknet_l unireplknet_xl", "0.4 -", (1e-4, 0.05, 0.85)),
        ("vit_comer_t", "0.1", (1.2e-4, 0.01, 0.95)),
        ("vit_comer_s vit_comer_b", "0.2 0.3", (6e-5, 0.01, 0.95)),
    ],
    "mask_rcnn_coco": [
        ("agent_pvt_t agent_pvt_s agent_pvt_m agent_pvt_l", "0.1 0.2 0.1 0.2", PVT),
        ("agent_swin_t agent_swin_s", "0.1 0.1", DETECTOR),
        ("crossformer_s crossformer_b crossformerpp_s crossformerpp_b", "0.2 0.3 0.2 0.3", (1e-4, 1e-4)),
        ("efficientformer_l1 efficientformer_l3 efficientformer_l7", "0 0 0", PVT),
        ("efficientformerv2_s0 efficientformerv2_s2 efficientformerv2_l", "0 0.02 0.1", (2e-4, 0.05)),
        ("iformer_small iformer_base", "- -", DETECTOR),
        ("nextvit_small nextvit_base nextvit_large", "0.1 0.2 0.2", DETECTOR),
        ("poolformer_s12 poolformer_s24 poolformer_s36", "0 0 0", PVT),
        ("shvit_s4", "0", DETECTOR),
        ("vit_comer_s_det", "0.2", (1e-4, 0.05, 0.7)),
        ("vit_comer_b_det", "0.3", (1e-4, 0.05, 0.6)),
        ("vitdet_b", "0.1", (1e-4, 0.1, 0.7)),
        ("vitdet_l", "0.4", (1e-4, 0.1, 0.8)),
        ("vitdet_h", "0.5", (1e-4, 0.1, 0.9)),
    ],
    "mask_rcnn_coco_3x": [
        ("agent_swin_t agent_swin_s", "0.1 0.1", DETECTOR),
        ("crossformer_s crossformer_b", "0.2 0.3", (1e-4, 1e-4)),
        ("cswin_tiny cswin_small cswin_base", "- - -", DETECTOR),
        ("nat_mini nat_tiny nat_small", "0.2 0.2 0.35", DETECTOR),
        ("dinat_mini dinat_tiny dinat_small dinat_s_tiny dinat_s_small", "0.2 0.2 0.35 0.2 0.35", DETECTOR),
        ("nextvit_small nextvit_base nextvit_large", "0.1 0.2 0.2", DETECTOR),
        ("smt_s smt_b", "0.2 0.2", (2e-4, 0.05)),
        ("vit_comer_s_det", "0.2", (1e-4, 0.05, 0.7)),
        ("vit_comer_b_det", "0.3", (1e-4, 0.05, 0.6)),
    ],
    "cascade_mask_rcnn_coco_3x": [
        ("agent_swin_t agent_swin_s agent_swin_b", "0.1 0.1 0.4", DETECTOR),
        ("crossformer_s", "0.2", (1e-4, 1e-4)),
        ("cswin_tiny cswin_small cswin_base", "- - -", DETECTOR),
        ("nat_mini nat_tiny nat_small nat_base", "0.2 0.3 0.3 0.5", DETECTOR),
        ("dinat_mini dinat_tiny dinat_small dinat_s_tiny dinat_s_small", "0.2 0.3 0.5 0.3 0.5", DETECTOR),
        ("dinat_base dinat_large dinat_s_base", "0.6 0.6 0.6", (7.5e-5, 0.05)),
        ("dinat_s_large", "0.6", (5e-5, 0.05)),
        ("hornet_tiny_7x7 hornet_tiny_gf hornet_small_7x7 hornet_small_gf", "0.4 0.4 0.6 0.6", (2e-4, 0.05, 0.7)),
        ("hornet_base_7x7 hornet_base_gf", "0.7 0.7", (2e-4, 0.05, 0.8)),
        ("hornet_large_7x7 hornet_large_gf", "0.7 0.7", (1e-4, 0.05, 0.7)),
        ("smt_s", "0.2", (2e-4, 0.05)),
        ("unireplknet_t unireplknet_s unireplknet_b", "0.3 0.5 0.6", (1e-4, 0.05, 0.8)),
        ("unireplknet_l unireplknet_xl", "0.7 0.7", (1e-4, 0.05, 0.7)),
    ],
    "retinanet_coco": [
        ("agent_pvt_t agent_pvt_s agent_pvt_m agent_pvt_l", "0.1 0.1 0.2 0.3", (1e-4, 1e-4)),
        ("crossformer_s crossformer_b crossformerpp_s crossformerpp_b", "0.2 0.3 0.2 0.3", (1e-4, 1e-4)),
        ("poolformer_s12 poolformer_s24 poolformer_s36", "0 0 0", (1e-4, 1e-4)),
        ("shvit_s4", "0", DETECTOR),
    ],
}
LISTED = [(config, *line) for config, lines in RECIPES.items() for line in lines]
#: Config -> method, data set and schedule of the published figures.
FIGURES = {
    "upernet_ade20k": ("upernet", "ade20k", None),
    "mask_rcnn_coco": ("mask_rcnn", "coco", "1x"),
    "mask_rcnn_coco_3x": ("mask_rcnn", "coco", "3x"),
    "cascade_mask_rcnn_coco_3x": ("cascade_mask_rcnn", "coco", "3x"),
    "retinanet_coco": ("retinanet", "coco", "1x"),
}
#: Backbones that are published with weights of ImageNet-22K only, which the index has beside those of ImageNet-1K.
FROM_22K = ("cswin_large", "dinat_large", "dinat_s_large", "unireplknet_b", "unireplknet_l", "unireplknet_xl")


@lru_cache
def _loaded(config):
    return load_config(CONFIGS / f"{config}.py")


def chosen(config, backbone):
    """The config with a backbone and what its recipe says, and the crop (None: the config's)."""
    cfg = copy.deepcopy(_loaded(config))
    set_backbone(cfg, backbone)
    size = apply_backbone_recipe(cfg)
    return cfg, size


def settings(cfg) -> dict:
    """The settings of a config's backbone, with the variant's own where the config says nothing."""
    stated = cfg.model.backbone
    stated = dict(name=stated) if isinstance(stated, str) else dict(stated)
    cls, arch = find_backbone(stated.pop("name"))
    return {**cls.variants[arch], **stated}


def groups_of(cfg):
    """The model without data (published size), and name -> (learning rate, weight decay)."""
    with torch.device("meta"):
        model = MODELS.build(dict(cfg.model, backbone_pretrained=False))
    wrapper = cfg.optim_wrapper
    groups = ParamRuleConstructor(dict(optimizer=wrapper.optimizer), wrapper.paramwise_cfg).groups(model)
    return model, {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


@pytest.mark.parametrize(("config", "backbones", "rates", "optimizer"), LISTED)
def test_published_recipe(config, backbones, rates, optimizer):
    for backbone, rate in zip(backbones.split(), rates.split(), strict=True):
        cfg, size = chosen(config, backbone)
        found, paramwise = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.paramwise_cfg
        decay = [paramwise.layer_decay] if "layer_decay" in paramwise else []
        assert (found.type, found.lr, found.weight_decay, *decay) == ("AdamW", *optimizer), backbone
        assert rate == "-" or settings(cfg).get("drop_path_rate", 0) == float(rate), backbone
        weights = f"{backbone}_22k" if backbone in FROM_22K else True
        assert cfg.model.backbone_pretrained == weights and (weights is True or weights in published_weights()), backbone
        sizes = {row.size for row in published_figures("upernet", backbone, "ade20k")}
        assert size == (640 if config == "upernet_ade20k" and sizes == {"640x640"} else None), backbone


@pytest.mark.parametrize("config", FIGURES)
def test_what_has_a_figure_has_a_recipe(config):
    """In the table above; and the family is named in the config's docstring."""
    known = {find_backbone(name)[0].family for _, names, *_ in LISTED for name in names.split()}
    method, dataset, schedule = FIGURES[config]
    published = {row.backbone for row in published_figures(method, dataset=dataset, schedule=schedule)}
    families = {name: find_backbone(name)[0].family for name in published & set(list_backbones())}
    families = {name: family.replace("_", "") for name, family in families.items() if family in known}
    assert set(families) <= {name for line in RECIPES[config] for name in line[0].split()} and families
    text = (CONFIGS / f"{config}.py").read_text().lower()
    named = [word.replace("++", "pp").replace("-", "").replace("_", "").strip(",:.") for word in text.split()]
    assert set(families.values()) <= set(named)


def test_settings_of_single_families():
    for config in ("mask_rcnn_coco", "retinanet_coco", "cascade_mask_rcnn_coco_3x"):

        def of(backbone, config=config):
            return settings(chosen(config, backbone)[0])

        assert of("dinat_tiny")["dilations"] == of("dinat_s_large")["dilations"] == "coco"
        assert of("dinat_large_11x11")["dilations"] == "mask2former"
        assert (of("nextvit_base")["norm_eval"], of("nextvit_base")["frozen_stages"]) == (True, 1)
        assert of("shvit_s4")["norm_eval"] and "frozen_stages" not in of("shvit_s4")
        assert of("efficientformerv2_s1")["norm_eval"] and "norm_eval" not in of("efficientformer_l1")
        assert of("hornet_large_gf")["grids"][2:] == ((24, 13), (12, 7))
        assert of("hornet_base_gf")["grids"][2:] == ((14, 8), (7, 4))
        for backbone, warmup in dict(crossformer_b=500, shvit_s4=500, vitdet_b=250, nat_mini=1000).items():
            assert chosen(config, backbone)[0].param_scheduler[0].end == warmup
        assert chosen(config, "vitdet_b")[0].auto_scale_lr == dict(enable=True, base_batch_size=64)
        assert chosen(config, "efficientformer_l1")[0].optim_wrapper.optimizer.lr == 2e-4  # RetinaNet's 1e-4 is PVT's
        assert chosen(config, "cswin_tiny")[0].model.backbone == "cswin_tiny"  # nothing of Swin's
    semantic = {name: settings(chosen("upernet_ade20k", name)[0]) for name in ("dinat_tiny", "dinat_large", "hornet_tiny_gf")}
    assert [semantic[name].get("dilations") for name in semantic] == ["ade20k", "ade20k_640", None]
    assert semantic["hornet_tiny_gf"]["grids"] == (None, None, (24, 13), (12, 7))
    v2 = settings(chosen("upernet_ade20k", "efficientformerv2_l")[0])
    assert v2["norm_eval"] and v2["bias_grid"] == 16
    assert "norm_eval" not in settings(chosen("upernet_ade20k", "nextvit_base")[0])


BACKBONES = (
    *("agent_pvt_s", "agent_swin_t", "crossformer_s", "crossformerpp_s", "cswin_tiny", "dinat_mini", "dinat_s_tiny"),
    *("efficientformer_l1", "efficientformerv2_s0", "hornet_tiny_gf", "iformer_small", "nat_small", "nextvit_small"),
    *("metaformer_pppa_s12", "poolformer_s12", "shvit_s4", "smt_s", "unireplknet_t", "vit_comer_s", "vit_comer_s_det"),
    *("vit_deit_small", "vitdet_b"),
)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("config", ["upernet_ade20k", "mask_rcnn_coco"])
def test_it_builds_with_its_groups(monkeypatch, config, backbone):
    """Stochastic depth, layer-wise decay and norms without weight decay are those of the recipe."""
    monkeypatch.setattr(BaseModule, "init_weights", lambda self: None)  # mmdet's wants data
    cfg, _ = chosen(config, backbone)
    model, groups = groups_of(cfg)
    rate = settings(cfg).get("drop_path_rate")
    assert rate is None or max(p.rate for p in model.backbone.modules() if isinstance(p, DropPath)) == pytest.approx(rate)
    base, paramwise = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.paramwise_cfg
    assert {lr for name, (lr, _) in groups.items() if not name.startswith("backbone.")} == {base.lr}
    layerwise = any(lr != base.lr for lr, _ in groups.values())
    assert layerwise == (paramwise.get("layer_decay", 1) < 1)
    norms = {decay for name, (_, decay) in groups.items() if name.startswith("backbone.") and name.endswith("norm1.weight")}
    without_decay = bool(paramwise.rules) or not paramwise.get("decay_vectors", True)
    assert norms <= {0.0 if without_decay else base.weight_decay}
    if config == "mask_rcnn_coco" and backbone in ("nextvit_small", "shvit_s4", "efficientformerv2_s0"):
        norms = [m for m in model.train().backbone.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms and not any(norm.training for norm in norms)
        frozen = [name for name, p in model.backbone.named_parameters() if not p.requires_grad]
        assert bool(frozen) == (backbone == "nextvit_small") and all(f"backbone.{name}" not in groups for name in frozen)


def test_layers_of_hornet_learn_as_published():
    """0.9 ** (13 - id); with HorNet-T 0.9 ** (7 - id), though its ids go up to 12."""
    places = {
        "backbone.downsample_layers.0.0.weight": 0,
        "backbone.stages.0.1.mlp.fc1.weight": 1,
        "backbone.downsample_layers.2.1.weight": 3,
        "backbone.stages.2.5.mlp.fc1.weight": 5,
        "backbone.stages.2.17.mlp.fc1.weight": 11,
        "backbone.stages.3.0.mlp.fc2.weight": 12,
    }
    for backbone, last in (("hornet_tiny_7x7", 6), ("hornet_small_7x7", 12)):
        _, groups = groups_of(chosen("upernet_ade20k", backbone)[0])
        for name, place in places.items():
            assert groups[name] == (pytest.approx(1e-4 * 0.9 ** (last + 1 - place)), 0.05), name
        assert groups["backbone.norm0.weight"] == (1e-4, 0.0) and groups["decode_head.conv_seg.weight"] == (1e-4, 0.05)


@pytest.mark.parametrize("backbone", ["convnext_tiny", "hornet_small_gf", "unireplknet_s", "vit_comer_s"])
def test_the_head_of_segformer_learns_faster_than_its_backbone(backbone):
    cfg, _ = chosen("segformer_ade20k", backbone)
    _, groups = groups_of(cfg)
    lr = cfg.optim_wrapper.optimizer.lr
    rates = {part: [r for name, (r, _) in groups.items() if name.startswith(part)] for part in ("decode_head", "backbone")}
    assert rates["decode_head"] == pytest.approx([10 * lr] * len(rates["decode_head"]))
    assert max(rates["backbone"]) == lr and min(rates["backbone"]) < lr


def test_assembled_with_other_wishes(tmp_path):
    """The changed warm-up and dilations survive a shorter training on other data."""
    data = tiny_data(tmp_path)
    for backbone in ("crossformer_s", "dinat_mini"):
        cfg = assemble(_loaded("mask_rcnn_coco_3x"), data=data, backbone=backbone, epochs=12, device="cpu", work_dir=tmp_path)
        warmup, steps = cfg.param_scheduler
        assert (warmup.end, steps.milestones) == (500 if backbone == "crossformer_s" else 1000, [9, 11])
        assert settings(cfg).get("dilations") == (None if backbone == "crossformer_s" else "coco")
