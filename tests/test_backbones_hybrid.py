"""UniRepLKNet, Next-ViT, iFormer and SHViT."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from mmvit.backbones import create_backbone
from mmvit.backbones.iformer import LowMixer
from mmvit.backbones.nextvit import EfficientAttention, TransformerBlock
from mmvit.backbones.unireplknet import BRANCHES, Block, DilatedReparamBlock, GlobalResponseNorm
from mmvit.check_golden import fill_values
from mmvit.errors import UserError
from mmvit.layers.conv import ConvNorm, ResidualDepthwise
from mmvit.layers.reparam import deploy
from mmvit.layers.squeeze import SqueezeExcite


def filled(module):
    """`module` in double precision and evaluation, with values that depend on the names alone."""
    state = {k: torch.from_numpy(fill_values(k, v.shape)) for k, v in module.state_dict().items() if v.is_floating_point()}
    module.load_state_dict(state, strict=False)
    return module.double().eval()


#: what UniRepLKNet's deployment removes; the offset of a batch norm becomes that of the layer before it
MERGED = r"\.branches\.|\.origin\.norm\.|\.norm2?\.weight|\.scale\.|\.grn\.beta"


@pytest.mark.parametrize(
    "name, millions, within",  # published figures are of deployed networks
    [
        *((f"unireplknet_{n}", m, 0.05) for n, m in (("a", 4.4), ("f", 6.2), ("p", 10.7), ("n", 18.3), ("t", 31.0))),
        *((f"unireplknet_{n}", m, 0.6) for n, m in (("s", 56.0), ("b", 98.0), ("l", 218.0), ("xl", 386.0))),
        *((f"nextvit_{n}", m, 0.05) for n, m in (("small", 31.7), ("base", 44.8), ("large", 57.8))),
        *((f"iformer_{n}", m, 0.5) for n, m in (("small", 20), ("base", 48), ("large", 87))),
        *((f"shvit_{n}", m, 0.06) for n, m in (("s1", 6.3), ("s2", 11.4), ("s3", 14.2), ("s4", 16.5))),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions, within):
    with torch.device("meta"):
        model = create_backbone(name)
        model = model if name.startswith("unireplknet") else deploy(model)
    last = model.feature_info[-1][0]
    classifier = 2 * last + 1000 * (last + 1)  # a norm and a linear layer
    out = model.dense_only()
    count = classifier + sum(p.numel() for n, p in model.named_parameters() if n not in out and not re.search(MERGED, n))
    assert count / 1e6 == pytest.approx(millions, abs=within)
    if name == "unireplknet_t":
        assert count == 31_037_980  # the merged official classifier


@pytest.mark.parametrize("name", ["unireplknet_debug", "nextvit_debug", "iformer_debug", "shvit_debug"])
def test_deployed_networks_compute_the_same(name):
    model = filled(create_backbone(name))
    x = torch.randn(2, 3, 70, 101, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        merged = deploy(copy.deepcopy(model))
        for got, want in zip(merged(x), before, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in merged.modules())
    if name.startswith("unireplknet"):
        kept = sum(p.numel() for n, p in model.named_parameters() if not re.search(MERGED, n))
        assert kept == sum(p.numel() for p in merged.parameters())
    state = {k: v.clone() for k, v in merged.state_dict().items()}
    deploy(merged)
    assert all(torch.equal(v, merged.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("kernel_size", sorted(BRANCHES))
def test_dilated_branches_become_one_kernel(kernel_size):
    block = filled(DilatedReparamBlock(3, kernel_size))
    x = torch.randn(2, 3, 21, 15, dtype=torch.float64)
    with torch.no_grad():
        want = block.origin(x) + sum(branch(x) for branch in block.branches.values())
        torch.testing.assert_close(block(x), want)
        block = deploy(block)
        torch.testing.assert_close(block(x), want)
    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "conv.bias"]


def test_kernels_of_other_sides_are_refused():
    with pytest.raises(UserError, match="no kernels of side 21"):
        create_backbone("unireplknet_debug", kernels=((3,), (21,), (3,), (3,)))
    with torch.device("meta"):
        model = create_backbone("unireplknet_s")
    sides = [block.dwconv.origin.conv.kernel_size[0] if hasattr(block.dwconv, "origin") else 3 for block in model.stages[2]]
    assert sides == [13, 3, 3] * 9


def test_global_response_norm_and_squeeze_excite():
    norm, x = filled(GlobalResponseNorm(6)), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    length = x.square().sum((1, 2), keepdim=True).sqrt()
    share = length / (length.mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(x), norm.gamma * (x * share) + norm.beta + x)
    gate, x = filled(SqueezeExcite(6, 2)), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    first, second = gate.fc1.weight[:, :, 0, 0], gate.fc2.weight[:, :, 0, 0]
    hidden = F.relu(F.linear(x.mean((2, 3)), first, gate.fc1.bias))
    factor = torch.sigmoid(F.linear(hidden, second, gate.fc2.bias))
    torch.testing.assert_close(gate(x), x * factor[:, :, None, None])


def test_merged_official_unireplknet_loads_into_a_deployed_one():
    model = deploy(filled(create_backbone("unireplknet_debug")))
    names = ((".pwconv1.", ".pwconv1.1."), (".grn.", ".act.1."), (".pwconv2.", ".pwconv2.0."))
    names += ((".se.fc1.", ".se.down."), (".se.fc2.", ".se.up."))
    official = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        large = ".dwconv." in key and model.state_dict()[key.replace(".bias", ".weight")].shape[-1] > 5
        official[key.replace(".dwconv.", ".dwconv.lk_origin.") if large else key] = value
    other = deploy(create_backbone("unireplknet_debug").double())
    other.load_state_dict(other.convert({**official, "norm.weight": torch.ones(3), "head.bias": torch.ones(3)}))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_unireplknet_decays_the_response_norm_but_not_the_layer_scale():
    model = create_backbone("unireplknet_debug")
    assert len(model.no_weight_decay()) == 7 and all(name.endswith(".scale.gamma") for name in model.no_weight_decay())
    assert model.stages[0][0].grn.gamma.ndim == 4  # a rule for vectors leaves it alone
    with torch.device("meta"):
        assert create_backbone("unireplknet_t").num_layers == 9 and create_backbone("unireplknet_s").num_layers == 12
    assert isinstance(model.stages[2][1], Block) and isinstance(model.stages[2][1].dwconv, torch.nn.Conv2d)


@pytest.mark.parametrize("tokens", [16, 37])
def test_nextvit_averages_consecutive_tokens(tokens):
    """Keys and values of average pooling in one dimension; tokens that fill no average are left out."""
    attention = filled(EfficientAttention(8, 2, 4))
    x = torch.randn(2, tokens, 8, dtype=torch.float64)
    source = attention.norm(F.avg_pool1d(x.transpose(1, 2), 16)).transpose(1, 2)
    query, key, value = (t.unflatten(-1, (2, 4)) for t in (attention.q(x), attention.k(source), attention.v(source)))
    weights = (torch.einsum("bthd,bshd->bhts", query, key) / 2).softmax(-1)
    want = attention.proj(torch.einsum("bhts,bshd->bthd", weights, value).flatten(2))
    torch.testing.assert_close(attention(x), want)


def test_nextvit_blocks_are_where_they_should_be():
    for name, depth in (("small", 10), ("base", 20), ("large", 30)):
        with torch.device("meta"):
            model = create_backbone(f"nextvit_{name}")
        ends = [6, *range(11, 7 + depth, 5), 9 + depth]
        assert [i for i, block in enumerate(model.features) if isinstance(block, TransformerBlock)] == ends
        assert [c for c, _ in model.feature_info] == [96, 256, 512, 1024]
    with pytest.raises(UserError, match="7 blocks ends in no transformer block"):
        create_backbone("nextvit_debug", depths=(1, 2, 7, 2))
    block = create_backbone("nextvit_debug", drop_path_rate=0.2).features[-1]
    rates = block.attention_drop_path.rate, block.conv_drop_path.rate, block.drop_path.rate
    assert rates == pytest.approx((0.15, 0.05, 0.2))


@pytest.mark.parametrize("name, settings", [("nextvit_debug", dict(drop_path_rate=0.0)), ("shvit_debug", {})])
def test_norm_eval_keeps_the_statistics_but_trains_the_affines(name, settings):
    model = create_backbone(name, norm_eval=True, **settings)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sum(m.square().mean() for m in model(torch.rand(2, 3, 128, 128))).backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_iformer_attends_to_averages(size):
    mixer = filled(LowMixer(8, 2, pooled=True))
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    height, width = (-(-side // 2) for side in size)
    averages = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(height) for j in range(width)]
    query, key, value = mixer.qkv(torch.stack(averages, 1)).unflatten(-1, (3, 2, 4)).unbind(2)
    weights = (torch.einsum("bthd,bshd->bhts", query, key) / 2).softmax(-1)
    out = torch.einsum("bhts,bshd->bthd", weights, value).flatten(2)
    got = mixer(x)
    for i in range(size[0]):
        for j in range(size[1]):
            torch.testing.assert_close(got[:, :, i, j], out[:, i // 2 * width + j // 2])


def test_iformer_positions_follow_the_image_size(tmp_path):
    source = create_backbone("iformer_debug")
    official = {}
    for key, value in source.state_dict().items():
        part, stage, *rest = key.split(".")
        number = int(stage) + 1
        if part == "pos_embed":
            official[f"pos_embed{number}"] = value
        elif part == "blocks":
            tail = ".".join(rest).replace("scale1.gamma", "layer_scale_1").replace("scale2.gamma", "layer_scale_2")
            official[f"blocks{number}.{tail}"] = value
        elif stage == "0":
            leaf = {"conv": "proj", "norm": "norm"}[rest[1]]
            official[f"patch_embed.{leaf}{int(rest[0]) + 1}.{rest[2]}"] = value
        else:
            official[f"patch_embed{number}.{rest[0].replace('conv', 'proj')}.{rest[1]}"] = value
    torch.save({**official, "norm.weight": torch.ones(24), "head.weight": torch.ones(3, 24)}, tmp_path / "weights.pth")
    same = create_backbone("iformer_debug", pretrained=str(tmp_path / "weights.pth"))
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in source.state_dict().items())
    other = create_backbone("iformer_debug", image_size=96, pretrained=str(tmp_path / "weights.pth"))
    assert [p.shape[1] for p in other.pos_embed] == [24, 12, 6, 3]
    x = torch.rand(1, 3, 96, 96)  # a table resized once is the table resized in each forward
    for got, want in zip(other.eval()(x), source.eval()(x), strict=True):
        torch.testing.assert_close(got, want)
    assert source.no_weight_decay() == {n for n, _ in source.named_parameters() if n[:9] == "pos_embed" or n[-5:] == "gamma"}


def test_iformer_variants_ramp_up_attention():
    with torch.device("meta"):
        for name, depths, width in (("small", (3, 3, 9, 3), 384), ("base", (4, 6, 14, 6), 512), ("large", (4, 6, 18, 8), 640)):
            model = create_backbone(f"iformer_{name}_384")
            assert model.depths == depths and model.feature_info[-1] == (width, 32)
            assert [p.shape[1] for p in model.pos_embed] == [96, 48, 24, 12]
            shares = [block.attn.split[1] / sum(block.attn.split) for stage in model.blocks for block in stage]
            assert shares == sorted(shares) and all(sum(b.attn.split) % 32 == 0 for s in model.blocks for b in s)


def test_shvit_branches_start_at_zero():
    model = create_backbone("shvit_s1").eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(x)[0], model.patch_embed(x))
    ones = [name for name, m in model.blocks2.named_modules() if isinstance(m, ResidualDepthwise) and m.norm.weight.any()]
    assert ones == ["0.conv", "2.conv"]
    assert model.blocks2[1].se.fc1.out_channels == 128
    assert create_backbone("shvit_s2").blocks3[1].se.fc1.out_channels == 312


def test_official_classifiers_load(tmp_path):
    """What only a classifier has is dropped; `downsample` parts of SHViT have other names."""
    for name, extra in (
        ("nextvit_debug", ("norm.weight", "proj_head.0.weight")),
        ("shvit_debug", ("head.bn.weight", "head.l.weight", "head_dist.l.bias")),
    ):
        model = create_backbone(name)
        official = {theirs(name, key): value for key, value in model.state_dict().items()}
        assert len(official) == len(model.state_dict())
        torch.save({"model": {**official, **dict.fromkeys(extra, torch.ones(2))}}, tmp_path / "weights.pth")
        other = create_backbone(name, pretrained=str(tmp_path / "weights.pth"))
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def theirs(name, key):
    """Our name of an entry -> the official one."""
    if name.startswith("nextvit"):
        key = key.replace(".mhca.conv.conv.", ".mhca.group_conv3x3.").replace(".mhca.conv.norm.", ".mhca.norm.")
        return key.replace(".mlp.fc", ".mlp.conv")
    *path, layer, leaf = key.split(".")
    layer = {"conv": "c", "norm": "bn"}.get(layer, layer)
    if path[0] == "patch_embed":
        path[1] = str(2 * int(path[1]))
    elif path[0] in ("blocks2", "blocks3") and path[1] in ("0", "2"):
        path[2:3] = ["0", "m"] if path[2] == "conv" else ["1", "m"]
    elif path[2] in ("conv", "ffn", "mixer"):
        path.insert(3, "m")
        path += ["1"] if path[-1] == "proj" else []
    return ".".join([*path, layer, leaf])


def test_dilated_and_residual_convolutions_merge():
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for module in (filled(ConvNorm(4, 6, 3, dilation=2)), filled(ResidualDepthwise(4, 5))):
        with torch.no_grad():
            want = module(x)
            assert want.shape[2:] == x.shape[2:]
            torch.testing.assert_close(deploy(module)(x), want)
