"""PoolFormer, MetaFormer, EfficientFormer and EfficientFormerV2."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmvit.backbones import create_backbone, find_backbone
from mmvit.backbones.efficientformer import DistanceBias
from mmvit.backbones.poolformer import Pooling, SpatialFC
from mmvit.layers.conv import ConvNorm

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize(
    "name, millions",  # published parameters of the classifiers
    [
        *(("poolformer_" + n, m) for n, m in (("s12", 11.9), ("s24", 21.4), ("s36", 30.9), ("m36", 56.2), ("m48", 73.5))),
        *(("metaformer_" + n, m) for n, m in (("id_s12", 11.9), ("pppa_s12", 14.0), ("ppaa_s12", 16.5))),
        *(("metaformer_" + n, m) for n, m in (("pppf_s12", 11.9), ("ppff_s12", 12.2))),
        *(("efficientformer_" + n, m) for n, m in (("l1", 12.3), ("l3", 31.4), ("l7", 82.2))),
        *(("efficientformerv2_" + n, m) for n, m in (("s0", 3.6), ("s1", 6.2), ("s2", 12.7), ("l", 26.3))),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    efficient = name.startswith("efficient")
    with torch.device("meta"):
        model = create_backbone(name, **({"bias_grid": 7} if efficient else {}))
    ends = model.dense_only()
    count = sum(p.numel() for n, p in model.named_parameters() if n not in ends)
    width = model.feature_info[-1][0]
    count += 2 * width + (2 if efficient else 1) * 1000 * (width + 1)  # a norm and one or two heads
    assert round(count / 1e6, 1) == millions


def test_both_names_of_the_ablations_are_known():
    assert find_backbone("metaformer_pppa_s12_224") == find_backbone("metaformer_pppa_s12")


@pytest.mark.parametrize("name", ["poolformer_debug", "metaformer_debug"])
def test_sides_are_those_of_the_convolutions(name):
    model = create_backbone(name)
    with torch.device("meta"):
        for side in range(32, 70):
            x = torch.empty(1, 3, side, side)
            for layer, stride in zip((model.patch_embed, *model.downsamples), model.strides):
                x = layer.to("meta")(x)
                assert x.shape[2] == model.map_side(side, stride)


def test_pooling_counts_neighbours_inside_the_map():
    x = torch.rand(1, 2, 4, 5)
    rows, columns = (0, 1), (2, 3, 4)
    mean = x[0, 1][rows, :][:, columns].mean()  # around (0, 3)
    torch.testing.assert_close(Pooling()(x)[0, 1, 0, 3], mean - x[0, 1, 0, 3])


def test_spatial_layer_on_maps_of_any_size():
    layer = SpatialFC(4)
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), (x.flatten(2) @ layer.fc.weight.T).view_as(x))
    with torch.no_grad():
        layer.fc.weight.copy_(torch.eye(16))
    assert layer(torch.rand(2, 3, 2, 7)).shape == (2, 3, 2, 7)
    ones = torch.ones(1, 1, 9, 5)
    torch.testing.assert_close(layer(ones), ones)
    ramp = torch.arange(12.0).expand(1, 1, 12, 12)  # kept in the middle, where nothing is cut off
    torch.testing.assert_close(layer(ramp)[..., 2:10], ramp[..., 2:10])


def test_position_embedding_is_resized_for_the_map_and_for_checkpoints():
    model = create_backbone("metaformer_debug").eval()
    own = model.pos_embed
    assert own.shape == (1, 32, 14, 14)
    entry = model.enter(2, torch.zeros(1, 12, 40, 30)) - model.downsamples[1](torch.zeros(1, 12, 40, 30))
    torch.testing.assert_close(entry, F.interpolate(own, (20, 15), mode="bicubic"), atol=1e-6, rtol=1e-5)
    larger = torch.rand(1, 32, 24, 24)
    fitted = model.fit_tables({"pos_embed": larger})["pos_embed"]
    torch.testing.assert_close(fitted, F.interpolate(larger, (14, 14), mode="bicubic"))


def image_of_pairs(bias):
    """The biases of all pairs of a query and a key, one by one."""
    side, pairs = bias.grid * bias.stride, {}
    for q in range(bias.grid**2):
        for k in range(side**2):
            rows = abs(bias.stride * (q // bias.grid) - k // side)
            columns = abs(bias.stride * (q % bias.grid) - k % side)
            pairs[q, k] = bias.table[:, rows * side + columns]
    return torch.stack(list(pairs.values()), 1).view(-1, bias.grid**2, side**2)


@pytest.mark.parametrize("stride", [1, 2])
def test_biases_of_distances(stride):
    """They are those of the grid, and the image of pairs is resized elsewhere; nothing outdated is remembered."""
    bias = DistanceBias(3, 4, stride)
    for _ in range(2):
        bias.table.data.normal_()  # a change that PyTorch does not count
        image = image_of_pairs(bias)
        for queries, keys in ((16, 16 * stride**2), (6, 6 * stride**2), (35, 35 * stride**2)):
            expected = F.interpolate(image[None], (queries, keys), mode="bicubic", align_corners=False)[0]
            torch.testing.assert_close(bias(queries, keys), expected)
            with torch.no_grad():
                first = bias(queries, keys)
                assert bias(queries, keys) is first
            torch.testing.assert_close(first, expected)
    with torch.no_grad():
        assert bias.double()(6, 6 * stride**2).dtype == torch.float64
    bias.memory = 10
    with torch.no_grad():
        assert bias(7, 7) is not bias(7, 7)


def official_state(name):
    """Random weights with the names of the paper's dense network."""
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    counters = {key: torch.zeros(shape) for key, shape in golden["kept"].items()}
    return {**counters, **{key: torch.randn(shape) * 0.1 for key, shape in golden["filled"].items()}}


def test_dense_and_classification_files_of_efficientformer_v2(tmp_path):
    """Dense files have biases of a larger grid beside the unused ones of the classifier; tables follow the network's grid."""
    dense = official_state("efficientformerv2_s0")
    model = create_backbone("efficientformerv2_s0")
    model.load_state_dict(model.convert(dense), strict=False)
    last = "network.6.3.token_mixer.attention_biases"
    assert torch.equal(model.stages[3][3].attn.bias.table, dense[f"{last}_seg"])
    qkv = model.stages[3][3].attn.qkv.conv.weight
    assert torch.equal(qkv[256:512], dense["network.6.3.token_mixer.k.0.weight"])

    classifier = {key: value for key, value in dense.items() if not key.endswith("_seg")}
    classifier.update({key: torch.randn(value.shape) for key, value in classifier.items() if key.endswith("attention_biases")})
    heads = {f"{part}.{leaf}": torch.zeros(3) for part in ("norm", "head", "dist_head") for leaf in ("weight", "bias")}
    torch.save({"model": {**classifier, **heads}}, tmp_path / "weights.pth")
    same = create_backbone("efficientformerv2_s0", bias_grid=7, pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(same.stages[3][3].attn.bias.table, classifier[last])
    larger = create_backbone("efficientformerv2_s0", pretrained=str(tmp_path / "weights.pth"))
    table, small = larger.stages[3][3].attn.bias.table.view(8, 25, 25), classifier[last].view(8, 7, 7)
    torch.testing.assert_close(table[:, ::4, ::4], small)  # every fourth entry is one of the 7
    assert larger.downsamples[2].attn.bias.table.shape == (8, 2500)


def test_tokens_begin_behind_the_layer_that_flattens():
    """In the official list of L7's last stage the first entry has no parameters, in L1's the fourth."""
    cls, _ = find_backbone("efficientformer_l7")
    keys = [f"network.6.{i}.token_mixer.qkv.weight" for i in range(1, 9)]
    assert list(cls.convert({key: torch.zeros(1) for key in keys})) == [f"stages.3.{i}.attn.qkv.weight" for i in range(8)]
    model = create_backbone("efficientformer_l1")
    renamed = model.convert(official_state("efficientformer_l1"))
    assert set(renamed) == set(model.state_dict())


def test_the_position_embedding_has_an_index_of_its_own():
    cls, _ = find_backbone("metaformer_ppaa_s12")
    official = (
        "network.3.proj.bias",
        "network.4.pos_embed",
        "network.5.0.norm1.bias",
        "network.6.proj.bias",
        "network.7.1.norm1.bias",
    )
    assert list(cls.convert({key: torch.zeros(1) for key in official})) == [
        "downsamples.1.bias",
        "pos_embed",
        "stages.2.0.norm1.bias",
        "downsamples.2.bias",
        "stages.3.1.norm1.bias",
    ]
    assert list(cls.convert({"network.6.0.token_mixer.fc.weight": torch.zeros(1)})) == ["stages.3.0.attn.fc.weight"]


def test_classification_file_of_poolformer(tmp_path):
    official = official_state("poolformer_s12")
    lacking = {key: value for key, value in official.items() if not key.startswith("norm")}
    classifier = {f"{part}.{leaf}": torch.zeros(3) for part in ("norm", "head") for leaf in ("weight", "bias")}
    torch.save({**lacking, **classifier}, tmp_path / "weights.pth")
    model = create_backbone("poolformer_s12", pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(model.stages[2][5].scale2.gamma, official["network.4.5.layer_scale_2"])
    assert torch.equal(model.downsamples[1].weight, official["network.3.proj.weight"])
    assert bool((model.norm3.weight == 1).all())


def test_norms_keep_their_statistics_where_asked():
    model = create_backbone("efficientformerv2_debug", norm_eval=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64))[-1].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    first = next(module for module in model.modules() if isinstance(module, ConvNorm))
    assert first.norm.weight.grad is not None


def test_factors_and_tables_have_no_weight_decay():
    names = create_backbone("efficientformerv2_debug").no_weight_decay()
    assert sum(name.endswith(".gamma") for name in names) == 6 + 2  # one for each MLP and each attention
    assert sum(name.endswith(".bias.table") for name in names) == 3
    assert "pos_embed" in create_backbone("metaformer_debug").no_weight_decay()
