"""Swin, its windows, and SLAB's batch normalisation that training fades in."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmvit.backbones import create_backbone, load_pretrained
from mmvit.backbones.slab import LinearAttention, PRepBN, RepBN, linear_attention
from mmvit.check_golden import fill_values
from mmvit.errors import UserError
from mmvit.layers.reparam import deploy
from mmvit.layers.window import (
    pad_to_multiple,
    relative_position_bias,
    relative_position_index,
    resize_bias_table,
    shift_mask,
    window_partition,
    window_reverse,
)

CPU = torch.device("cpu")


def filled(state):
    """Deterministic weights: norm scales and variances near 1, all else small."""
    return {
        k: torch.from_numpy(fill_values(k, list(v.shape))).to(v.dtype) if v.is_floating_point() else v for k, v in state.items()
    }


def create_filled(name, **settings):
    model = create_backbone(name, **settings).double().eval()
    model.load_state_dict(filled(model.state_dict()))
    return model


# ----------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("size", [(3, 2), (4, 4), (1, 5)])
def test_windows_hold_their_tokens_row_by_row(size):
    h, w = size
    x = torch.arange(2 * 3 * h * 2 * w * 2.0).view(2, 3 * h, 2 * w, 2)
    windows = window_partition(x, size)
    assert windows.shape == (2 * 3 * 2, h * w, 2)
    for number in range(len(windows)):
        image, row, column = number // 6, number // 2 % 3, number % 2
        expected = x[image, row * h : (row + 1) * h, column * w : (column + 1) * w]
        assert torch.equal(windows[number], expected.reshape(h * w, 2))
    assert torch.equal(window_reverse(windows, size, 3 * h, 2 * w), x)


def test_padding_to_whole_windows():
    x = torch.rand(2, 5, 8, 3)
    assert pad_to_multiple(x, (5, 4)) is x
    padded = pad_to_multiple(x, (4, 3))
    assert padded.shape == (2, 8, 9, 3)
    assert torch.equal(padded[:, :5, :8], x) and padded.sum() == x.sum()
    value = torch.tensor([1.0, 2.0, 3.0])
    padded = pad_to_multiple(x, (4, 3), value)
    assert torch.equal(padded[:, :5, :8], x)
    assert (padded[:, 5:] == value).all() and (padded[:, :, 8:] == value).all()


@pytest.mark.parametrize("size", [(3, 3), (2, 4)])
def test_relative_positions(size):
    h, w = size
    index = relative_position_index(size, CPU)
    table = torch.rand((2 * h - 1) * (2 * w - 1), 2)
    bias = relative_position_bias(table, size)
    for query in range(h * w):
        for key in range(h * w):
            down, right = query // w - key // w, query % w - key % w
            row = (down + h - 1) * (2 * w - 1) + right + w - 1
            assert index[query, key] == row and torch.equal(bias[:, query, key], table[row])


@pytest.mark.parametrize("sides", [(4, 4), (8, 12), (4, 12)])
@pytest.mark.parametrize("shift", [(2, 2), (1, 2), (0, 2)])
def test_masked_are_the_pairs_that_only_rolling_brought_together(sides, shift):
    """Inside a window of the rolled map, a pair is masked unless it lies in the original map as it does in the window."""
    height, width = sides
    origin = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)
    rolled = origin.roll((-shift[0], -shift[1]), (0, 1))
    before, after = (window_partition(t[None], (4, 4)) for t in (origin, rolled))
    expected = ((before[:, :, None] - before[:, None]) != (after[:, :, None] - after[:, None])).any(-1)
    mask = shift_mask(height, width, (4, 4), shift, CPU, torch.float32)
    assert mask.shape == (height * width // 16, 16, 16)
    assert torch.equal(mask, expected * -100.0)
    assert mask.min() == -100


def test_what_was_made_in_inference_mode_serves_in_training():
    model = create_backbone("swin_debug")
    x = torch.rand(1, 3, 100, 36)  # sizes that no other test uses
    with torch.inference_mode():
        model(x)
    sum(m.mean() for m in model(x)).backward()
    assert model.layers[0].blocks[1].attn.relative_position_bias_table.grad.abs().sum() > 0


# ----------------------------------------------------------------------------------------------------------------- weights


def test_bias_tables_of_another_window(tmp_path):
    table = torch.rand(7 * 7, 3, dtype=torch.float64)
    grid = F.interpolate(table.t().view(1, 3, 7, 7), (11, 11), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resize_bias_table(table, 121), grid.view(3, 121).t())
    torch.testing.assert_close(resize_bias_table(torch.full((49, 3), 0.7), 121), torch.full((121, 3), 0.7))
    torch.testing.assert_close(resize_bias_table(table, 49), table)

    source = create_backbone("swin_debug")
    torch.save({"model": {**source.state_dict(), "head.weight": torch.zeros(2, 2)}}, tmp_path / "window4.pth")
    model = create_backbone("swin_debug", window=6, pretrained=str(tmp_path / "window4.pth"))
    for key, value in source.state_dict().items():
        own = model.state_dict()[key]
        assert torch.equal(own, resize_bias_table(value, 121) if key.endswith("bias_table") else value)
    with pytest.raises(UserError, match="do not fit Swin.*relative_position_bias_table"):
        create_backbone("swin_debug", num_heads=(1, 2, 2, 2), pretrained=str(tmp_path / "window4.pth"))


def test_classification_weights_lack_only_the_norms_of_the_outputs(tmp_path):
    golden = json.loads((Path(__file__).parent / "goldens" / "swin_tiny.json").read_text())
    official = {**golden["filled"], **golden["kept"], **golden["cls_checkpoint_only"]}
    for key in golden["dense_only"]:
        del official[key]
    with torch.device("meta"):
        model = create_backbone("swin_tiny")
        converted = model.convert({k: torch.empty(shape) for k, shape in official.items()})
        mmdet = model.convert({k: torch.empty(shape) for k, shape in golden["mmdet3_keys"].items()})
    own = {k: v.shape for k, v in model.state_dict().items()}
    assert set(golden["dense_only"]) == model.dense_only()
    assert {k: v.shape for k, v in converted.items()} == {k: s for k, s in own.items() if k not in model.dense_only()}
    assert {k: v.shape for k, v in mmdet.items()} == own

    source, model = create_backbone("swin_debug"), create_backbone("swin_debug")
    weights = {k: v for k, v in source.state_dict().items() if k not in source.dense_only()}
    torch.save({"model": weights}, tmp_path / "weights.pth")
    load_pretrained(model, str(tmp_path / "weights.pth"))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
    weights.pop("layers.2.blocks.1.mlp.fc2.bias")
    torch.save({"model": weights}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="layers.2.blocks.1.mlp.fc2.bias"):
        load_pretrained(model, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "name, millions, head",  # published parameters of the classifier, width of its last linear layer
    [
        ("swin_tiny", 28.288354, 768),
        ("swin_small", 49.6, 768),
        ("swin_base", 87.8, 1024),
        ("swin_base_window12", 87.9, 1024),
        ("swin_large", 196.5, 1536),
        ("swin_large_window12", 196.7, 1536),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions, head):
    with torch.device("meta"):
        model = create_backbone(name)
    ends = model.dense_only()
    count = sum(p.numel() for n, p in model.named_parameters() if n not in ends)
    count += 2 * head + head * 1000 + 1000
    assert count == pytest.approx(millions * 1e6, abs=1 if name == "swin_tiny" else 6e4)


@pytest.mark.parametrize("size", [(64, 64), (45, 71), (33, 130)])
def test_same_maps_as_mmsegs_swin(size):
    from mmseg.models.backbones import SwinTransformer

    depths, heads = (2, 2, 3, 2), (1, 2, 2, 4)
    peer = SwinTransformer(embed_dims=8, depths=depths, num_heads=heads, window_size=4, mlp_ratio=2, drop_path_rate=0.0)
    peer.double().eval()  # returns nothing
    peer.load_state_dict(filled(peer.state_dict()))
    model = create_backbone("swin_debug", depths=depths).double().eval()
    model.load_state_dict(model.convert(peer.state_dict()))
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for got, want in zip(model(x), peer(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_depths_for_layer_wise_decay():
    with torch.device("meta"):
        tiny, small = create_backbone("swin_tiny"), create_backbone("swin_small")
    assert (tiny.num_layers, small.num_layers) == (6, 12)
    for name, depth in {
        "patch_embed.norm.bias": 0,
        "layers.0.blocks.1.attn.qkv.weight": 1,
        "layers.0.downsample.norm.weight": 2,
        "layers.1.blocks.0.norm1.weight": 2,
        "layers.1.downsample.reduction.weight": 3,
        "layers.2.blocks.1.norm1.weight": 3,
        "layers.2.blocks.2.norm1.weight": 4,
        "layers.2.blocks.17.norm1.weight": 11,
        "layers.2.downsample.reduction.weight": 12,
        "layers.3.blocks.0.norm1.weight": 12,
        "norm2.weight": 13,
    }.items():
        assert small.layer_depth(name) == depth, name


# -------------------------------------------------------------------------------------------------------------------- SLAB


def by_hand(norm, x, fade):
    """fade * LN + (1 - fade) * (BN + alpha x) with the statistics of this batch."""
    tokens = x.view(-1, x.shape[-1])
    bn = norm.norm2.bn
    mean, var = tokens.mean(0), tokens.var(0, unbiased=False)
    rep = (x - mean) / (var + bn.eps).sqrt() * bn.weight + bn.bias + norm.norm2.alpha * x
    layer = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.norm1.eps).sqrt()
    return fade * (layer * norm.norm1.weight + norm.norm1.bias) + (1 - fade) * rep


def prepbn(steps, **settings):
    norm = PRepBN(3, **settings).double()
    norm.start(steps)
    norm.load_state_dict(filled(norm.state_dict()))
    return norm


def test_layer_norm_fades_into_batch_norm():
    norm = prepbn(4)
    for step, fade in enumerate((1, 0.75, 0.5, 0.25, 0, 0)):
        assert int(norm.iter) == max(4 - step, 0)
        x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
        torch.testing.assert_close(norm(x), by_hand(norm, x, fade))
    assert int(norm.total_step) == 4 and int(norm.norm2.bn.num_batches_tracked) == 6
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    bn, x = norm.norm2.bn, torch.randn(2, 4, 3, dtype=torch.float64)
    expected = (x - bn.running_mean) / (bn.running_var + 1e-5).sqrt() * bn.weight + bn.bias + norm.norm2.alpha * x
    torch.testing.assert_close(norm(x), expected)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_fading_goes_on_from_a_checkpoint():
    norm, resumed = prepbn(5), PRepBN(3).double()
    batches = torch.randn(6, 2, 9, 3, dtype=torch.float64)
    for x in batches[:3]:
        norm(x)
    resumed.load_state_dict(norm.state_dict())
    for x in batches[3:]:
        assert torch.equal(norm(x), resumed(x))
    assert int(resumed.iter) == 0 and all(torch.equal(v, resumed.state_dict()[k]) for k, v in norm.state_dict().items())


def test_only_layer_norm_while_warm():
    norm = prepbn(2, has_warm=True)
    norm.load_state_dict({**norm.state_dict(), "warm": torch.tensor(2)})
    statistics = norm.norm2.bn.running_mean.clone()
    for warm, fade in ((2, 1), (1, 1), (0, 1), (0, 0.5), (0, 0)):
        assert int(norm.warm) == warm
        assert torch.equal(norm.norm2.bn.running_mean, statistics) == (fade == 1 and int(norm.iter) == 2)
        x = torch.randn(8, 3, dtype=torch.float64)
        torch.testing.assert_close(norm(x), by_hand(norm, x, fade))
    assert "warm" in norm.state_dict() and "warm" not in prepbn(2).state_dict()


def test_checkpointing_counts_a_step_once():
    """Recomputing in the backward pass changes neither the gradients nor the counters nor the running statistics."""
    found = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = create_backbone("slab_swin_debug", with_cp=with_cp, fade_steps=3).double().train()
        for _ in range(2):
            model.zero_grad()
            sum(m.square().mean() for m in model(torch.rand(2, 3, 64, 64, dtype=torch.float64))).backward()
        found.append(({k: p.grad for k, p in model.named_parameters()}, model.state_dict()))
    for key, gradient in found[0][0].items():
        torch.testing.assert_close(gradient, found[1][0][key], msg=key)
    assert all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())
    assert {int(v) for k, v in found[0][1].items() if k.endswith(".iter")} == {1}


def test_batch_norms_with_fixed_statistics():
    model = create_backbone("swin_prepbn_debug", norm_eval=True, fade_steps=2).train()
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        loss = sum(m.square().mean() for m in model(torch.rand(2, 3, 64, 64)))
    loss.backward()
    changed = {k.rsplit(".", 1)[1] for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {"iter"}
    norm = model.layers[1].blocks[0].norm1.norm2
    assert norm.alpha.grad.abs().sum() > 0 and norm.bn.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["swin_prepbn_debug", "slab_swin_debug", "pvt_prepbn_debug", "slab_pvt_debug"])
@pytest.mark.parametrize("size", [(64, 64), (45, 71), (37, 90)])
def test_merged_norms_compute_the_same(name, size):
    """The batch norms disappear in their neighbours, also where maps are padded to whole windows."""
    model = create_filled(name)
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        for precision, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            merged = deploy(copy.deepcopy(model).to(precision))
            assert not any(isinstance(m, (RepBN, PRepBN)) for m in merged.modules())
            for got, want in zip(deploy(merged)(x.to(precision)), expected, strict=True):
                assert (got - want).abs().max() <= tolerance * want.abs().max()
        if "swin" in name and size != (64, 64):  # zeros in place of what the padded tokens were would be seen
            merged = deploy(copy.deepcopy(model))
            for layer in merged.layers:
                for block in layer.blocks:
                    block.attn.padding = None
            assert (merged(x)[0] - expected[0]).abs().max() > 1e-5 * expected[0].abs().max()


def test_the_norms_of_inference_take_trained_weights():
    trained = create_filled("swin_prepbn_debug")
    variant = {"dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window": 4, "mlp_ratio": 2.0}
    model = create_backbone("swin_t_prepbn_merge", **variant).double().eval()
    model.load_state_dict(model.convert(trained.state_dict()))
    x = torch.rand(1, 3, 45, 71, dtype=torch.float64)
    for got, want in zip(model(x), trained(x), strict=True):
        assert torch.equal(got, want)


def test_linear_attention_is_normalised_and_precise():
    query, key, value = (torch.rand(2, 3, 7, 4, dtype=torch.float64) for _ in range(3))
    weights = query @ key.transpose(-2, -1)
    expected = weights @ value / (weights.sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(linear_attention(query, key, value), expected)
    half = linear_attention(*(300 * t.bfloat16() for t in (query, key, value)))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), 300 * expected, rtol=0.02, atol=0)


def test_simplified_linear_attention_on_a_map():
    """Every part by loops: position encoding, ReLU, heads, and the convolution of the values that heads share."""
    torch.manual_seed(0)
    attn = LinearAttention(8, 2, side=3).double()
    torch.nn.init.normal_(attn.positional_encoding)
    x = torch.randn(1, 3, 3, 8, dtype=torch.float64)
    tokens = x.view(9, 8)
    query, (key, value) = attn.q(tokens).relu(), attn.kv(tokens).chunk(2, -1)
    key = (key + attn.positional_encoding[0]).relu()
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = query[:, head] @ key[:, head].t()
        local = F.conv2d(value[:, head].t().reshape(1, 4, 3, 3), attn.dwc.weight, attn.dwc.bias, padding=2, groups=4)
        heads.append(weights @ value[:, head] / (weights.sum(1, keepdim=True) + 1e-6) + local.view(4, 9).t())
    torch.testing.assert_close(attn(x), attn.proj(torch.cat(heads, 1)).view(1, 3, 3, 8))
    assert attn(torch.rand(2, 5, 4, 8, dtype=torch.float64)).shape == (2, 5, 4, 8)  # resized encoding
