"""NAT, DiNAT, DiNAT_s and their neighbourhood attention; HorNet; SMT."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmvit.backbones import create_backbone
from mmvit.backbones.hornet import GlobalLocalFilter, RecursiveGatedConv
from mmvit.backbones.nat import DILATIONS, DiNATs, block_dilations
from mmvit.backbones.smt import LocallyEnhancedAttention, ScaleAwareModulation
from mmvit.errors import UserError
from mmvit.layers import neighborhood
from mmvit.layers.neighborhood import NeighborhoodAttention, map_tiles, neighborhood_attention

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ neighbourhood attention


def neighbours(i, length, kernel, dilation):
    """Positions of the window of pixel `i` on an axis, and their entries of the bias table, as the papers define them."""
    residue, place = i % dilation, i // dilation
    count = len(range(residue, length, dilation))
    start = min(max(place - kernel // 2, 0), count - kernel)
    places = range(start, start + kernel)
    return [residue + dilation * p for p in places], [p - place + kernel - 1 for p in places]


def naive_logits(query, key, rpb, kernel, dilation):
    """(B, H, W, heads, d) -> logits (B, H, W, heads, k * k) and the windows' pixels."""
    height, width = query.shape[1:3]
    logits, windows = [], []
    for i in range(height):
        for j in range(width):
            rows, a = neighbours(i, height, kernel, dilation)
            columns, b = neighbours(j, width, kernel, dilation)
            keys = key[:, rows][:, :, columns].flatten(1, 2)
            logits.append(torch.einsum("bhd,bkhd->bhk", query[:, i, j], keys) + rpb[:, a][:, :, b].flatten(1))
            windows.append((rows, columns))
    return torch.stack(logits, 1).unflatten(1, (height, width)), windows


def naive_sum(attention, value, windows):
    """(B, H, W, heads, k * k), (B, H, W, heads, d) -> (B, H, W, heads, d)."""
    parts = [
        torch.einsum("bhk,bkhd->bhd", weights, value[:, rows][:, :, columns].flatten(1, 2))
        for weights, (rows, columns) in zip(attention.flatten(1, 2).unbind(1), windows)
    ]
    return torch.stack(parts, 1).view_as(value)


def naive_neighborhood_attention(query, key, value, rpb, dilation):
    logits, windows = naive_logits(query * query.shape[-1] ** -0.5, key, rpb, (rpb.shape[-1] + 1) // 2, dilation)
    return naive_sum(logits.softmax(-1), value, windows).flatten(3)


def random_maps(height, width, kernel, heads=2, dim=4, batch=2):
    generator = torch.Generator().manual_seed(0)
    options = dict(dtype=torch.float64, generator=generator)
    maps = [torch.randn(batch, height, width, heads, dim, **options).requires_grad_() for _ in range(3)]
    return *maps, torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1, **options).requires_grad_()


SIZES = [  # height, width, kernel, dilation
    (7, 7, 7, 1),
    (8, 9, 7, 1),
    (13, 20, 7, 1),
    (25, 17, 7, 1),
    (14, 21, 7, 2),
    (12, 13, 3, 4),
    (19, 20, 5, 2),
    (22, 12, 11, 1),
    (17, 9, 3, 1),
    (9, 31, 3, 3),
]


@pytest.mark.parametrize("height, width, kernel, dilation", SIZES)
def test_tiles_give_the_attention_of_the_definition_and_its_gradients(height, width, kernel, dilation):
    inputs = random_maps(height, width, kernel)
    got, want = (f(*inputs, dilation) for f in (neighborhood_attention, naive_neighborhood_attention))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    for mine, theirs in zip(torch.autograd.grad(got, inputs, weights), torch.autograd.grad(want, inputs, weights)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    with torch.inference_mode():  # another kernel of scaled_dot_product_attention
        torch.testing.assert_close(neighborhood_attention(*inputs, dilation), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("height, width, kernel, dilation", [*SIZES, (64, 56, 7, 1), (57, 63, 7, 8), (50, 40, 7, 5)])
def test_every_pixel_is_in_a_tile(height, width, kernel, dilation):
    tiling = map_tiles(height, width, kernel, dilation, CPU)
    pixels = torch.cat([group.queries.flatten() for group in tiling.groups])
    assert torch.equal(pixels[tiling.order], torch.arange(height * width))
    masked = 2 * kernel * (2 * kernel - 1)
    for group in tiling.groups:
        assert ((group.bias < masked) & (group.bias % (2 * kernel) < 2 * kernel - 1)).sum(1).eq(kernel**2).all()


def test_tables_made_in_inference_mode_serve_training():
    inputs = random_maps(11, 12, 3)
    with torch.inference_mode():
        neighborhood_attention(*inputs, 1)
    neighborhood_attention(*inputs, 1).sum().backward()
    assert inputs[3].grad is not None


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation makes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize:
                self.count = max(self.count, tensor.numel())
        return result


def test_windows_are_not_copied_for_every_pixel():
    """A gather of the 49 neighbours would make tensors of 49 maps; tiles make some 3 in evaluation, 6 with gradients."""
    attention = NeighborhoodAttention(32, 1, 7)
    x = torch.rand(1, 64, 64, 32)
    for gradients, limit in ((False, 4), (True, 8)):
        with torch.set_grad_enabled(gradients), Largest() as largest:
            out = attention(x)
            if gradients:
                out.sum().backward()
        assert x.numel() < largest.count <= limit * x.numel()


def test_small_maps_are_padded_and_the_padding_is_attended():
    attention = NeighborhoodAttention(8, 2, 3, dilation=2).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    x = torch.randn(1, 4, 7, 8, dtype=torch.float64)
    filled = F.pad(x, (0, 0, 0, 0, 0, 2))  # 3 * 2 rows; 7 columns suffice
    query, key, value = attention.qkv(filled).unflatten(-1, (3, 2, 4)).unbind(3)
    torch.testing.assert_close(key[:, 4:].flatten(3), attention.qkv.bias[8:16].expand(1, 2, 7, 8))
    want = attention.proj(naive_neighborhood_attention(query, key, value, attention.rpb, 2)[:, :4])
    torch.testing.assert_close(attention(x), want)


def test_an_even_window_is_refused():
    with pytest.raises(UserError, match="odd side, not 6"):
        create_backbone("nat_debug", kernel=6)


@pytest.mark.parametrize("generation", [14, 17])
def test_natten_is_called_as_it_wants_to_be(generation, monkeypatch):
    """A stand-in with the signatures and layouts of natten 0.14 and 0.17, computed from the definition."""

    def logits_of(query, key, rpb, kernel_size, dilation):
        query, key = (x.permute(0, 2, 3, 1, 4) for x in (query, key))
        return naive_logits(query, key, rpb, kernel_size, dilation)[0].permute(0, 3, 1, 2, 4)

    def output_of(attn, value, kernel_size, dilation):
        attn, value = (x.permute(0, 2, 3, 1, 4) for x in (attn, value))
        rows, columns = (
            [neighbours(i, length, kernel_size, dilation)[0] for i in range(length)] for length in value.shape[1:3]
        )
        return naive_sum(attn, value, [(a, b) for a in rows for b in columns]).permute(0, 3, 1, 2, 4)

    functional = types.ModuleType("natten.functional")
    if generation == 14:
        functional.natten2dqkrpb, functional.natten2dav = logits_of, output_of
    else:

        def na2d_qk(query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None):
            assert additional_keys is None and not is_causal
            return logits_of(query, key, rpb, kernel_size, dilation)

        functional.na2d_qk, functional.na2d_av = na2d_qk, output_of
    package = types.ModuleType("natten")
    package.functional = functional
    monkeypatch.setitem(sys.modules, "natten", package)
    monkeypatch.setitem(sys.modules, "natten.functional", functional)
    neighborhood.natten_kernels.cache_clear()
    try:
        inputs = random_maps(9, 12, 3)
        got = neighborhood.natten_neighborhood_attention(*inputs, 2)
        torch.testing.assert_close(got, neighborhood_attention(*inputs, 2))
    finally:
        neighborhood.natten_kernels.cache_clear()


# -------------------------------------------------------------------------------------------------- NAT, DiNAT and DiNAT_s


def test_published_dilations():
    def of(use, depths, presets=DILATIONS):
        return block_dilations(use, depths, presets)

    tiny, small = (3, 4, 18, 5), (2, 2, 18, 2)
    assert of("imagenet", tiny) == [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]
    assert of("imagenet_384", tiny) == [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]
    assert of("ade20k", tiny) == [[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]]
    largest = [1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5]
    assert of("ade20k_640", tiny) == [[1, 20, 1], [1, 5, 1, 10], largest, [1, 2, 1, 2, 1]]
    assert of("coco", tiny) == [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]]
    assert of("mask2former", tiny) == [[1, 14, 1], [1, 4, 1, 7], [1, 2, 1, 3] * 4 + [1, 3], [1] * 5]
    assert of("imagenet", small, DiNATs.presets) == [[1, 8], [1, 4], [1, 2] * 9, [1, 1]]
    assert of("imagenet_384", small, DiNATs.presets) == [[1, 13], [1, 6], [1, 3] * 9, [1, 1]]
    assert of("ade20k", small, DiNATs.presets) == [[1, 16], [1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2]]
    assert of("ade20k_640", small, DiNATs.presets) == [[1, 20], [1, 10], largest, [1, 2]]
    assert of("coco", small, DiNATs.presets) == [[1, 28], [1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3]]
    with pytest.raises(UserError, match="Did you mean 'ade20k'"):
        create_backbone("dinat_debug", dilations="ade")


def dilations_of(model):
    return [m.dilation for m in model.modules() if isinstance(m, NeighborhoodAttention)]


def test_networks_have_the_dilations_asked_for():
    assert dilations_of(create_backbone("dinat_debug")) == [2, 1, 3, 2, 1, 1]
    assert dilations_of(create_backbone("dinat_s_debug")) == [1, 4, 2, 1, 2, 1]
    assert dilations_of(create_backbone("dinat_s_debug", dilations="imagenet")) == [1, 8, 1, 1, 2, 1]
    assert set(dilations_of(create_backbone("nat_debug"))) == {1}
    with torch.device("meta"):
        assert dilations_of(create_backbone("dinat_small"))[:7] == [1, 16, 1, 1, 4, 1, 8]


@pytest.mark.parametrize("name, other", [("nat_debug", dict(kernel=7)), ("dinat_s_debug", dict(window=5))])
def test_bias_tables_of_another_window_are_resized(name, other):
    source, model = create_backbone(name), create_backbone(name, **other)
    state = model.fit_tables(model.convert(source.state_dict()))
    model.load_state_dict(state)
    table = next(value for key, value in source.state_dict().items() if key.endswith(".rpb"))
    wider = next(value for key, value in state.items() if key.endswith(".rpb"))
    side = wider.shape[-1]
    want = F.interpolate(table[None], (side, side), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(wider, want)


# ------------------------------------------------------------------------------------------------------------------ HorNet


def test_a_filter_of_ones_leaves_its_channels():
    """... of maps of any size, also odd ones and a single pixel; the two halves of the channels alternate."""
    layer = GlobalLocalFilter(6, (5, 3)).double()
    with torch.no_grad():
        layer.complex_weight.zero_()[..., 0] = 1
    layer.pre_norm, layer.post_norm = torch.nn.Identity(), torch.nn.Identity()
    for size in ((5, 4), (7, 9), (8, 6), (1, 1)):
        x = torch.randn(2, 6, *size, dtype=torch.float64)
        y = layer(x)
        torch.testing.assert_close(y[:, 1::2], x[:, 3:])
        torch.testing.assert_close(y[:, ::2], layer.dw(x[:, :3]))


def test_a_filter_is_a_circular_convolution():
    layer = GlobalLocalFilter(2, (4, 3)).double()
    kernel, x = torch.randn(4, 5, dtype=torch.float64), torch.randn(1, 1, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.complex_weight.copy_(torch.view_as_real(torch.fft.rfft2(kernel))[None])
    want = torch.zeros_like(x)
    for i in range(4):
        for j in range(5):
            want += kernel[i, j] * x.roll((i, j), (2, 3))
    torch.testing.assert_close(layer.filter(x), want)


def test_filters_run_in_single_precision_under_autocast():
    layer = GlobalLocalFilter(4, (4, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(layer(torch.rand(1, 4, 6, 5))).all()
    assert layer.filter(torch.rand(1, 2, 6, 5).bfloat16()).dtype == torch.bfloat16


def test_recursive_gating_step_by_step():
    layer = RecursiveGatedConv(16, 3).double()
    assert layer.widths == [4, 8, 16]
    x = torch.randn(1, 16, 6, 5, dtype=torch.float64)
    z = layer.proj_in(x)
    gates = layer.dwconv(z[:, 4:]) / 3
    y = z[:, :4] * gates[:, :4]
    y = layer.pws[0](y) * gates[:, 4:12]
    y = layer.pws[1](y) * gates[:, 12:]
    torch.testing.assert_close(layer(x), layer.proj_out(y))


def test_filters_of_another_image_size_are_resized():
    source = create_backbone("hornet_gf_debug")
    model = create_backbone("hornet_gf_debug", grids=(None, None, (6, 4), (4, 3)))
    state = model.fit_tables(model.convert(source.state_dict()))
    model.load_state_dict(state)
    key = "stages.2.0.gnconv.dwconv.complex_weight"
    before, after = source.state_dict()[key], state[key]
    assert after.shape == (before.shape[0], 6, 4, 2)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # corners are aligned
        torch.testing.assert_close(after[:, corner[0], corner[1]], before[:, corner[0], corner[1]])


# --------------------------------------------------------------------------------------------------------------------- SMT


def test_modulation_head_by_head():
    layer = ScaleAwareModulation(16).double().eval()
    x = torch.randn(1, 6, 7, 16, dtype=torch.float64)
    heads = layer.s(x).permute(0, 3, 1, 2).split(4, 1)
    convolved = [conv(head) for conv, head in zip(layer.local_convs, heads)]
    assert [conv.kernel_size[0] for conv in layer.local_convs] == [3, 5, 7, 9]
    mixed = torch.cat([convolved[j][:, c : c + 1] for c in range(4) for j in range(4)], 1)  # channel 4 c + j
    modulator = layer.proj1(layer.proj0(mixed)).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer.proj(modulator * layer.v(x)))


def test_attention_with_a_convolution_of_its_values():
    layer = LocallyEnhancedAttention(8, 2).double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    query, (key, value) = layer.q(x).flatten(1, 2), layer.kv(x).flatten(1, 2).split(8, -1)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (query[..., head] @ key[..., head].transpose(1, 2) / 2).softmax(-1)
        parts.append(weights @ value[..., head])
    local = layer.dw_conv(value.transpose(1, 2).unflatten(2, (3, 4))).flatten(2).transpose(1, 2)
    want = layer.proj(torch.cat(parts, -1) + local).unflatten(1, (3, 4))
    torch.testing.assert_close(layer(x), want)


def test_widths_that_kernels_cannot_share_are_refused():
    with pytest.raises(UserError, match="4 kernel sizes cannot share 10 channels"):
        create_backbone("smt_debug", dims=(10, 16, 24, 32))


@pytest.mark.parametrize("side", range(32, 44))
def test_sides_of_smt_maps(side):
    model = create_backbone("smt_debug").eval()
    with torch.no_grad():
        maps = model(torch.rand(1, 3, side, 35))
    first = -(-side // 2) // 2
    assert [m.shape[2] for m in maps] == [first, -(-first // 2), -(-first // 4), -(-first // 8)]


# --------------------------------------------------------------------------------------------------- published checkpoints


@pytest.mark.parametrize(
    "name, millions, classes",
    [
        *(("nat_" + n, m, 1000) for n, m in (("mini", 20), ("tiny", 28), ("small", 51), ("base", 90))),
        *(("dinat_" + n, m, 1000) for n, m in (("mini", 20), ("tiny", 28), ("small", 51), ("base", 90), ("large", 201))),
        ("dinat_large_11x11", 201, 1000),
        *(("dinat_s_" + n, m, 1000) for n, m in (("tiny", 28), ("small", 50), ("base", 88), ("large", 197))),
        *(("hornet_" + n, m, 1000) for n, m in (("tiny_7x7", 22), ("small_7x7", 50), ("base_7x7", 87))),
        *(("hornet_" + n, m, 1000) for n, m in (("tiny_gf", 23), ("small_gf", 50), ("base_gf", 88))),
        # published with a classifier of ImageNet-22K's 10450 cleaned classes
        *(("hornet_large_" + n, m, 10450) for n, m in (("7x7", 209), ("gf", 211), ("gf_img384", 216))),
        *(("smt_" + n, m, 1000) for n, m in (("t", 12), ("s", 23), ("b", 32), ("l", 81))),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions, classes):
    """In millions, classifiers. SMT-S has 22.55: its published 21 does not hold for its published weights, nor does the 200 of
    DiNAT-L (200.9)."""
    with torch.device("meta"):
        model = create_backbone(name)
    width, ends = model.feature_info[-1][0], model.dense_only()
    count = sum(p.numel() for n, p in model.named_parameters() if n not in ends)
    norm = 0 if name.startswith("smt") else 2 * width  # the classifier's norm is SMT's last norm
    assert round((count + norm + classes * (width + 1)) / 1e6) == millions


def official_nat(key):
    return key.replace(".scale1.gamma", ".gamma1").replace(".scale2.gamma", ".gamma2")


def official_hornet(key):
    return official_nat(key).replace(".mlp.fc", ".pwconv")


def official_smt(key, convolution="local_conv"):
    for ours, theirs in (
        ("patch_embed1.0.conv.", "patch_embed1.conv.0."),
        ("patch_embed1.0.norm.", "patch_embed1.conv.1."),
        ("patch_embed1.1.proj.", "patch_embed1.conv.3."),
        ("patch_embed1.1.norm.", "patch_embed1.norm."),
        (".proj0.conv.", ".proj0."),
        (".proj0.norm.", ".bn."),
        *((f".local_convs.{i}.", f".local_conv_{i + 1}.") for i in range(4)),
        (".attn.dw_conv.", f".attn.{convolution}."),
        (".mlp.dwconv.", ".mlp.dwconv.dwconv."),
        (".scale1.gamma", ".gamma_1"),
        (".scale2.gamma", ".gamma_2"),
    ):
        key = key.replace(ours, theirs)
    return key


@pytest.mark.parametrize(
    "name, rename, extra",
    [
        ("nat_debug", official_nat, ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("nat_scaled_debug", official_nat, ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("dinat_debug", official_nat, ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("dinat_s_debug", official_nat, ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("hornet_7x7_debug", official_hornet, ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("hornet_gf_debug", official_hornet, ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("smt_debug", official_smt, ("head.weight", "head.bias")),
        ("smt_scaled_debug", lambda key: official_smt(key, "dw_conv"), ("head.weight", "head.bias")),
    ],
)
def test_classification_checkpoints_load(name, rename, extra, tmp_path):
    source = create_backbone(name)
    state = source.state_dict()
    kept = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items() if k not in source.dense_only()}
    path = tmp_path / "weights.pth"
    torch.save({"model": {rename(k): v for k, v in kept.items()} | {k: torch.rand(3) for k in extra}}, path)
    loaded = create_backbone(name, pretrained=str(path)).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in kept.items())
    assert all(torch.equal(loaded[k], torch.ones_like(loaded[k]) * k.endswith("weight")) for k in source.dense_only())
    dense = {rename(k): v for k, v in state.items()}  # the dense repositories have the norms of the outputs, too
    source.load_state_dict(source.convert(dense))
