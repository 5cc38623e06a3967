"""Plain transformers (ViT, DeiT, ViTDet), ViT-CoMer, and the pyramids of backbones that lack some strides."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvit.backbones import Pyramid, create_backbone, find_backbone, list_backbones, load_pretrained
from mmvit.backbones.vit_comer import MapAttention, TwoFields, cell_centres
from mmvit.backbones.vitdet import RelativeAttention
from mmvit.check_golden import fill_image, fill_values, probe_index
from mmvit.errors import UserError
from mmvit.layers.reparam import deploy

GOLDENS = Path(__file__).parent / "goldens"
DEBUG = list_backbones("*_debug")


def filled(state):
    return {
        k: torch.from_numpy(fill_values(k, list(v.shape))).to(v.dtype) if v.is_floating_point() else v for k, v in state.items()
    }


# ------------------------------------------------------------------------------------------------------------- plain ViTs


@pytest.mark.parametrize(
    "name, millions, heads",  # published parameters with `heads` classifiers and the last norm
    [
        ("vit_deit_tiny", 5.717, 1),
        ("vit_deit_tiny_distilled", 5.911, 2),
        ("vit_deit_small", 22.051, 1),
        ("vit_deit_small_distilled", 22.436, 2),
        ("vit_deit_base", 86.568, 1),
        ("vit_deit_base_distilled", 87.338, 2),
        ("vit_deit_base_384", 86.860, 1),
        ("vit_deit_base_distilled_384", 87.630, 2),
        ("vit_large_patch16", 304.327, 1),
        ("vit_comer_t", 10.619, None),
        ("vit_comer_s", 31.28, None),
        ("vit_comer_b", 110.60, None),
        ("vit_comer_s_det", 30.458, None),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions, heads):
    with torch.device("meta"):
        model = create_backbone(name)
    count = sum(p.numel() for p in model.parameters())
    if heads:
        dim = model.feature_info[0][0]
        count += 2 * dim + heads * 1000 * (dim + 1)
    assert count / 1e6 == pytest.approx(millions, abs=0.006 if millions in (31.28, 110.60) else 6e-4)


def test_variants_of_the_papers():
    names = set(list_backbones("vit*"))
    assert {"vitdet_b", "vitdet_l", "vitdet_h", "vit_comer_b_det"} <= names
    for name, globals_, rates in (("b", (2, 5, 8, 11), 0.1), ("l", (5, 11, 17, 23), 0.4), ("h", (7, 15, 23, 31), 0.5)):
        with torch.device("meta"):
            model = create_backbone(f"vitdet_{name}")
        found = [i for i, block in enumerate(model.blocks) if block.attn.window is None]
        assert tuple(found) == globals_ and model.blocks[-1].drop_path.rate == pytest.approx(rates)
        assert model.blocks[0].attn.rel_pos_h.shape[0] == 27 and model.blocks[globals_[0]].attn.rel_pos_w.shape[0] == 127
    with torch.device("meta"):
        model = create_backbone("vit_comer_s_det")
    assert [b.attn.window for b in model.blocks] == [(14, 14), (14, 14), None] * 4


def test_positions_follow_the_map():
    model = create_backbone("vit_debug").double().eval()
    table = model.pos_embed[:, 1:].view(1, 5, 5, 16)
    model.patch_embed.proj.weight.data.zero_()
    model.patch_embed.proj.bias.data.zero_()
    torch.testing.assert_close(model.embed(torch.zeros(1, 3, 80, 80).double()), table)
    for height, width in ((48, 64), (100, 175)):
        got = model.embed(torch.zeros(1, 3, height, width).double())
        size = -(-height // 16), -(-width // 16)
        want = F.interpolate(table.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["vit_debug", "vit_distilled_debug", "vitdet_debug", "vit_comer_debug"])
def test_checkpoints_of_other_sizes_load(name, tmp_path):
    """A classification checkpoint (timm's names) made for larger images; more extra tokens than the network has go."""
    source = create_backbone("vit_distilled_debug", pretrain_size=112, depth=create_backbone(name).num_layers)
    with torch.no_grad():
        source.pos_embed[:, 2:] = torch.linspace(-1, 1, 7)[None, :, None, None].expand(1, 7, 7, 16).flatten(1, 2)
    state = source.state_dict() | {"norm.weight": torch.ones(16), "head.weight": torch.rand(3, 16)}
    state["head_dist.bias"] = torch.rand(3)
    torch.save({"model": state}, tmp_path / "weights.pth")
    for strides in (None, (4, 8, 16, 32)):
        model = create_backbone(name, out_strides=strides, pretrained=str(tmp_path / "weights.pth"))
        model = getattr(model, "inner", model)
        assert torch.equal(model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
        grid = model.pos_embed[:, model.slots :].view(5, 5, 16)
        assert (grid[2].abs() < 1e-5).all() and (grid[0] < -0.6).all() and (grid[4] > 0.6).all()
        assert torch.equal(model.pos_embed[:, : model.slots], source.pos_embed[:, : model.slots])
    del state["blocks.1.attn.qkv.weight"]
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"do not fit {type(model).__name__}: 1 keys are missing"):
        create_backbone(name, out_strides=(8, 16, 32), pretrained=str(tmp_path / "weights.pth"))


def naive_relative_attention(module, x):
    """`RelativeAttention` over one map (h, w, C), query by query."""
    height, width, dim = x.shape
    query, key, value = module.qkv(x).view(height, width, 3, module.num_heads, -1).permute(2, 3, 0, 1, 4)
    tables = [
        F.interpolate(t.t()[None], 2 * side - 1, mode="linear")[0].t()
        for t, side in ((module.rel_pos_h, height), (module.rel_pos_w, width))
    ]
    out = torch.zeros(module.num_heads, height, width, dim // module.num_heads, dtype=x.dtype)
    for n in range(module.num_heads):
        for y in range(height):
            for column in range(width):
                q = query[n, y, column]
                logits = key[n] @ q * len(q) ** -0.5
                logits = logits + torch.stack([tables[0][y - y2 + height - 1] @ q for y2 in range(height)])[:, None]
                logits = logits + torch.stack([tables[1][column - x2 + width - 1] @ q for x2 in range(width)])
                out[n, y, column] = (logits.flatten().softmax(0)[:, None] * value[n].flatten(0, 1)).sum(0)
    return module.proj(out.permute(1, 2, 0, 3).reshape(height, width, dim))


@pytest.mark.parametrize("window", [None, 3])
def test_relative_positions_query_by_query(window):
    module = RelativeAttention(8, 2, window, side=4).double()
    module.load_state_dict(filled(module.state_dict()))
    x = torch.rand(2, 5, 7, 8, dtype=torch.float64)
    got = module(x)
    if window is None:
        want = torch.stack([naive_relative_attention(module, image) for image in x])
    else:  # zeros fill the last windows, and take part
        padded = F.pad(x, (0, 0, 0, 2, 0, 1))
        want = torch.zeros_like(padded)
        for i, image in enumerate(padded):
            for y in (0, 3):
                for column in (0, 3, 6):
                    part = image[y : y + 3, column : column + 3]
                    want[i, y : y + 3, column : column + 3] = naive_relative_attention(module, part)
        want = want[:, :5, :7]
    torch.testing.assert_close(got, want)


def test_vitdet_takes_the_official_names():
    model = create_backbone("vitdet_debug")
    theirs = {f"backbone.net.{k}": v for k, v in filled(model.state_dict()).items()}
    theirs["backbone.net.pos_embed"] = F.pad(theirs["backbone.net.pos_embed"], (0, 0, 1, 0))
    theirs["backbone.simfp_2.0.weight"] = torch.rand(3)
    larger = "backbone.net.blocks.1.attn.rel_pos_h"
    theirs[larger] = torch.arange(17.0)[:, None].expand(-1, 8)
    state = model.fit_tables(model.convert(theirs))
    model.load_state_dict(state)
    assert torch.equal(model.pos_embed, theirs["backbone.net.pos_embed"][:, 1:])
    torch.testing.assert_close(model.blocks[1].attn.rel_pos_h[:, 0], ((torch.arange(9) + 0.5) * 17 / 9 - 0.5).clamp(0, 16))


# --------------------------------------------------------------------------------------------------------------- ViT-CoMer


def test_vit_comer_on_an_image_that_is_not_square():
    """Numbers of the official code (specification of the network, float32): mean, deviation, absolute maximum, probes."""
    golden = json.loads((GOLDENS / "vit_comer_t.json").read_text())
    model = create_backbone("vit_comer_t").eval()
    official = {k: torch.from_numpy(fill_values(k, shape)) for k, shape in golden["filled"].items()}
    model.load_state_dict({**model.state_dict(), **model.convert(official)})
    with torch.no_grad():
        maps = model(torch.from_numpy(fill_image((1, 3, 192, 320), 0)))
    for stage, numbers, probes in (
        (0, (-0.008215685, 1.171598, 6.297041), (-2.153454, 0.3229876, 1.320843, -0.7298397)),
        (3, (-0.1378402, 1.510044, 6.146972), (-0.2049138, -2.68364, 0.1792595, 0.1621265)),
    ):
        x = maps[stage].numpy()
        np.testing.assert_allclose((x.mean(), x.std(), np.abs(x).max()), numbers, rtol=0, atol=5e-5 * numbers[2])
        np.testing.assert_allclose(x.reshape(-1)[probe_index(x.size)][:4], probes, rtol=0, atol=5e-5 * numbers[2])


def test_windows_of_vit_comer_hold_keys_of_zeros():
    """Filled-up queries, keys and values are zeros behind the linear layer: logit 0, value 0."""
    module = MapAttention(8, 2, 3).double()
    module.load_state_dict(filled(module.state_dict()))
    x = torch.rand(1, 3, 5, 8, dtype=torch.float64)
    query, key, value = module.qkv(x[:, :, 3:]).view(6, 3, 2, 4).permute(1, 2, 0, 3)  # the second window: 3 x 2 pixels
    weights = torch.cat([query @ key.transpose(1, 2) / 2, torch.zeros(2, 6, 3, dtype=torch.float64)], -1).softmax(-1)
    want = module.proj((weights[..., :6] @ value).transpose(0, 1).flatten(1))
    torch.testing.assert_close(module(x)[0, :, 3:].flatten(0, 1), want)


def test_cell_centres():
    centres = cell_centres(((2, 4), (1, 2), (1, 1)), torch.device("cpu"), torch.float32)
    assert centres.shape == (1, 11, 2)
    assert centres[0, 1].tolist() == [0.375, 0.25] and centres[0, 4].tolist() == [0.125, 0.75]
    assert centres[0, 9].tolist() == [0.75, 0.5] and centres[0, 10].tolist() == [0.5, 0.5]


def test_two_fields_merge():
    module = TwoFields(6).eval()
    module.load_state_dict(filled(module.state_dict()))
    x = torch.rand(2, 6, 7, 5)
    merged = deploy(copy.deepcopy(module))
    assert isinstance(merged.norm, torch.nn.Identity)
    torch.testing.assert_close(merged(x), module(x))


def test_vit_comer_starts_as_the_vit():
    """Before training, the pyramid gives nothing to the ViT, whose maps are those of the plain one (without class token)."""
    model = create_backbone("vit_comer_debug").eval()
    images = torch.rand(1, 3, 64, 96)
    x = model.embed(images)
    for block in model.blocks:
        x = block(x)
    torch.testing.assert_close(model.interact(images)[1][-1], x)
    assert model.layer_depth("blocks.3.attn.qkv.weight") == 4 and model.layer_depth("pos_embed") == 0
    assert model.layer_depth("interactions.0.cti_tov.scale.gamma") == model.layer_depth("level_embed") == 5
    scales = {"blocks.0.scale1.gamma", "interactions.2.cti_tov.scale.gamma"}
    assert {"pos_embed", "level_embed"} | scales <= model.no_weight_decay()


# ---------------------------------------------------------------------------------------------------------------- pyramids


@pytest.mark.parametrize("name", DEBUG)
def test_every_backbone_gives_any_strides(name):
    x = torch.rand(1, 3, 70, 45)
    for strides in ((4, 8, 16, 32), (16, 32, 64)):
        model = create_backbone(name, out_strides=strides).eval()
        assert isinstance(model, Pyramid) != (set(strides) <= set(find_backbone(name)[0].strides))
        assert tuple(stride for _, stride in model.feature_info) == strides
        with torch.no_grad():
            maps = model(x)
        for feature, (channels, stride) in zip(maps, model.feature_info, strict=True):
            assert feature.shape == (1, channels, model.map_side(70, stride), model.map_side(45, stride))


def test_backbones_that_have_the_strides_keep_their_names():
    for name in ("swin_debug", "resnet_debug", "vit_comer_debug"):
        asked = create_backbone(name, out_strides=(4, 8, 16, 32))
        assert asked.state_dict().keys() == create_backbone(name).state_dict().keys()
    last = create_backbone("vit_debug", out_strides=(16,))
    assert last.out_indices == (3,) and last.feature_info == [(16, 16)]


def test_simple_pyramid_of_a_plain_transformer():
    model = create_backbone("vitdet_debug", out_strides=(4, 8, 16, 32)).eval()
    assert model.feature_info == [(4, 4), (8, 8), (16, 16), (16, 32)] and model.inner.out_indices == (3,)
    assert [type(layer).__name__ for layer in model.pyramid[0]] == ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d"]
    x = torch.rand(1, 3, 64, 64)
    (last,) = model.inner(x)
    maps = model(x)
    assert torch.equal(maps[2], last) and torch.equal(maps[3], F.max_pool2d(last, 2))
    torch.testing.assert_close(maps[1], model.pyramid[1][0](last))


def three_stages():
    return next(name for name in DEBUG if find_backbone(name)[0].strides == (16, 32, 64))


@pytest.mark.parametrize("name", ["vit_debug", "vitdet_debug", three_stages()])
def test_pyramids_train(name):
    """A gradient in every parameter, the same with recomputation; depths, frozen stages and weight decay are the inner ones."""
    torch.manual_seed(0)
    model = create_backbone(name, out_strides=(4, 8, 16, 32)).train()
    inner, x = model.inner, torch.rand(2, 3, 128, 128)
    state, gradients = copy.deepcopy(model.state_dict()), []
    for with_cp in (False, True):
        model.load_state_dict(state)
        model.with_cp = with_cp
        model.zero_grad()
        torch.manual_seed(0)
        sum((m * torch.linspace(-1, 1, m.numel()).view(m.shape)).mean() for m in model(x)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert inner.with_cp
    for key, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][key])
    assert model.num_layers == inner.num_layers
    for key, _ in model.named_parameters():
        own = not key.startswith("inner.")
        assert model.layer_depth(key) == (model.num_layers + 1 if own else inner.layer_depth(key.removeprefix("inner.")))
    assert model.no_weight_decay() == {f"inner.{key}" for key in inner.no_weight_decay()}
    assert model.dense_only() >= {key for key in state if not key.startswith("inner.")}
    frozen = create_backbone(name, out_strides=(4, 8, 16, 32), frozen_stages=1, with_cp=True)
    assert frozen.with_cp and frozen.inner.with_cp
    assert not any(p.requires_grad for p in frozen.inner.patch_embed.parameters())
    assert all(p.requires_grad for key, p in frozen.named_parameters() if not key.startswith("inner."))


def test_pyramid_of_three_stages_loses_none():
    model = create_backbone(three_stages(), out_strides=(8, 16, 32)).eval()
    assert model.inner.out_indices == (0, 1, 2) and len(model.fold) == 1
    x = torch.rand(1, 3, 96, 160)
    fine, middle, coarse = model.inner(x)
    maps = model(x)
    assert torch.equal(maps[1], fine)
    torch.testing.assert_close(maps[2], middle + model.fold[0](coarse)[..., :3, :5])


def test_pyramid_loads_weights_of_the_backbone(tmp_path):
    source = create_backbone("vitdet_debug")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = create_backbone("vitdet_debug", out_strides=(8, 16, 32))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_pretrained(model, str(tmp_path / "weights.pth"))
    for key, value in model.state_dict().items():
        own = source.state_dict().get(key.removeprefix("inner."))
        assert torch.equal(value, before[key] if own is None else own)
    resized = model.fit_tables({**before, "inner.pos_embed": torch.rand(1, 49, 16)})
    assert resized["inner.pos_embed"].shape == (1, 25, 16) and resized.keys() == before.keys()


def test_strides_that_no_doubling_reaches():
    with pytest.raises(UserError, match="No map of stride 12 can be made from strides 16"):
        create_backbone("vit_debug", out_strides=(12, 16))


@pytest.mark.parametrize("name", ["vit_debug", "vit_comer_det_debug", three_stages()])
def test_recipes_take_them(name):
    """RT-DETR, a detector, a semantic and a mask classifier build on them; their state dicts come back through `convert`."""
    from mmvit.architectures import create_model

    for model in (
        create_model("rtdetr_debug", backbone=name),
        create_model(f"mask_rcnn_{name}", num_classes=3),
        create_model(f"upernet_{name}", num_classes=3),
        create_model(f"kmax_{name}", num_classes=3, data_preprocessor=dict(size=(65, 65))),
    ):
        state = {key: value + 0.5 if value.is_floating_point() else value for key, value in model.state_dict().items()}
        model.load_state_dict(model.convert(state))
        depths = {model.layer_depth(key) for key, _ in model.backbone.named_parameters(prefix="backbone")}
        assert set(range(model.num_layers + 1)) <= depths
        if name == "vit_debug":
            assert model.no_weight_decay() == {"backbone.inner.cls_token", "backbone.inner.pos_embed"}


def test_rules_of_the_optimizer_see_no_pyramid():
    """The backbone's rate is for pretrained weights; what the pyramid adds learns at the full one."""
    from mmvit.architectures import create_model
    from mmvit.engine.optim import ParamRuleConstructor

    model = create_model("segformer_vit_debug")
    rules = [dict(pattern=r"^backbone\.", lr_mult=0.1)]
    settings = dict(optimizer=dict(type="AdamW", lr=1.0))
    rate = {name: g["lr"] for g in ParamRuleConstructor(settings, dict(rules=rules)).groups(model) for name in g["names"]}
    for name, lr in rate.items():
        assert lr == (0.1 if name.startswith("backbone.inner.") else 1.0), name
    assert any(name.startswith("backbone.pyramid.") for name in rate)
