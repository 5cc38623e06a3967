"""CSWin, CrossFormer(++), Agent-Swin and Agent-PVT: what the tests of all backbones do not see."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmvit.backbones import create_backbone
from mmvit.backbones.agent_attention import TABLES, AgentAttention
from mmvit.backbones.crossformer import GroupAttention, group, ungroup
from mmvit.backbones.cswin import CrossShapedAttention, LePEAttention
from mmvit.backbones.swin import BiasedWindowAttention
from mmvit.check_golden import fill_values
from mmvit.errors import UserError

GOLDENS = Path(__file__).parent / "goldens"


def stirred(module):
    """The same module in double precision, with weights that hide nothing (biases and tables that start small)."""
    state = module.state_dict()
    module.load_state_dict({key: torch.from_numpy(fill_values(key, value.shape)) for key, value in state.items()})
    return module.double().eval()


@pytest.mark.parametrize(
    "name, dense, classifier",  # parameters of the dense network, published ones of the classifier in millions
    [
        ("cswin_tiny", 21808448, 22.3),
        ("cswin_small", 34131200, 34.6),
        ("cswin_base", 76614528, 77.4),
        ("cswin_base_384", 76614528, 77.4),
        ("cswin_large", 172111680, 173.3),
        ("cswin_large_384", 172111680, 173.3),
        ("crossformer_t", 27262770, 27.8),
        ("crossformer_s", 29886858, 30.7),
        ("crossformer_b", 51201018, 52.0),
        ("crossformer_l", 90944136, 92.0),
        ("crossformerpp_s", 22811316, 23.3),
        ("crossformerpp_b", 51224058, 52.0),
        ("crossformerpp_l", 90974856, 92.0),
        ("crossformerpp_h", 94935896, 96.0),
        ("agent_swin_t", 28135308, 28.9),
        ("agent_swin_s", 48899028, 49.7),
        ("agent_swin_b", 87071888, 88.1),
        ("agent_pvt_t", 11057352, 11.6),
        ("agent_pvt_s", 20122066, 20.6),
        ("agent_pvt_m", 35408746, 35.9),
        ("agent_pvt_l", 48225180, 48.7),
    ],
)
def test_parameter_counts(name, dense, classifier):
    with torch.device("meta"):
        model = create_backbone(name)
    count = sum(p.numel() for p in model.parameters())
    assert count == dense
    ends = sum(p.numel() for n, p in model.named_parameters() if n in model.dense_only())
    width = model.feature_info[-1][0]
    assert (count - ends + 2 * width + 1000 * (width + 1)) / 1e6 == pytest.approx(classifier, abs=0.06)


@pytest.mark.parametrize("name", ["cswin_tiny", "crossformer_s", "crossformerpp_s", "agent_swin_t", "agent_pvt_t"])
def test_classification_checkpoints_lack_the_norms_of_the_outputs_only(name):
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    official = {**golden["filled"], **golden["kept"]}
    with torch.device("meta"):
        model = create_backbone(name)
        ends = {key for key in official if key in model.dense_only()}
        head = {key: [3] for key in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
        mask = {"layers.0.blocks.1.attn_mask": [3]} if name == "agent_swin_t" else {}
        official = {key: shape for key, shape in {**official, **head, **mask}.items() if key not in ends}
        converted = model.convert({key: torch.empty(shape) for key, shape in official.items()})
    own = {key: value.shape for key, value in model.state_dict().items() if key not in model.dense_only()}
    assert {key: value.shape for key, value in converted.items()} == own
    assert len(ends) == len(model.dense_only())


# ------------------------------------------------------------------------------------------------------------------- CSWin


def plain_lepe_attention(attention, qkv, window):
    """Window by window, head by head. qkv (h, w, 3, D)."""
    height, width, _, dim = qkv.shape
    h, w = window
    down, right = -height % h, -width % w
    padded = qkv.new_zeros(height + down, width + right, 3, dim)
    padded[down // 2 : down // 2 + height, right // 2 : right // 2 + width] = qkv
    out = torch.zeros_like(padded[:, :, 0])
    for top in range(0, height + down, h):
        for left in range(0, width + right, w):
            part = padded[top : top + h, left : left + w]
            local = attention.lepe(part[:, :, 2].permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            heads = []
            for query, key, value in zip(*(t.reshape(h * w, dim).chunk(attention.num_heads, 1) for t in part.unbind(2))):
                heads.append((query @ key.t() * query.shape[1] ** -0.5).softmax(1) @ value)
            out[top : top + h, left : left + w] = torch.cat(heads, 1).view(h, w, dim) + local
    return out[down // 2 : down // 2 + height, right // 2 : right // 2 + width]


@pytest.mark.parametrize("size", [(5, 8), (7, 3), (2, 2)])
@pytest.mark.parametrize("window", [(None, 3), (3, None), (None, None), (None, 1)])
def test_attention_with_lepe(size, window):
    attention = stirred(LePEAttention(6, 2, *window))
    qkv = torch.rand(2, *size, 3, 6, dtype=torch.float64)
    sides = window[0] or size[0], window[1] or size[1]
    expected = torch.stack([plain_lepe_attention(attention, one, sides) for one in qkv])
    torch.testing.assert_close(attention(qkv), expected)


def test_the_two_halves_of_the_channels_see_the_two_directions():
    attention = stirred(CrossShapedAttention(8, 2, 1))
    attention.proj = torch.nn.Identity()
    x = torch.rand(1, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    for channel, column in ((0, True), (3, True), (4, False), (7, False)):
        (gradient,) = torch.autograd.grad(attention(x)[0, 2, 4, channel], x)
        seen = gradient[0].abs().sum(-1) > 0
        expected = torch.zeros_like(seen)
        expected[(slice(None), 4) if column else (2, slice(None))] = True
        assert torch.equal(seen, expected)
    with pytest.raises(UserError, match="3 attention heads cannot share two directions"):
        CrossShapedAttention(6, 3, 1)


def test_last_stage_of_cswin_attends_to_the_whole_map():
    stages = [create_backbone("cswin_debug").get_submodule(f"stage{i}") for i in (1, 2, 3, 4)]
    windows = [[branch.window for branch in stage[0].attn.branches] for stage in stages]
    assert windows == [[(None, width), (width, None)] for width in (1, 2, 3)] + [[(None, None)]]


def test_sides_of_cswin_are_those_of_its_stem():
    model = create_backbone("cswin_debug").eval()
    for side in (150, 151, 35):
        maps = model(torch.rand(1, 3, side, 202))
        first = (side + 1) // 4
        sides = [(first, 50), (-(-first // 2), 25), (-(-first // 4), 13), (-(-first // 8), 7)]
        assert [m.shape[2:] for m in maps] == sides


# -------------------------------------------------------------------------------------------------------------- CrossFormer


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_groups(interval):
    h, w = size = 2, 3
    x = torch.arange(2 * 12 * 18.0).view(2, 12, 18, 1)
    groups = group(x, size, interval)
    number = 0
    for row in range(12 // (h * interval)):
        for column in range(18 // (w * interval)):
            for p in range(interval):
                for q in range(interval):
                    for token in range(h * w):
                        down, right = (row * h + token // w) * interval + p, (column * w + token % w) * interval + q
                        assert torch.equal(groups[:, number, token], x[:, down, right])
                    number += 1
    assert number == groups.shape[1]
    assert torch.equal(ungroup(groups, size, interval, 12, 18), x)


def plain_group_attention(attention, x):
    """As the papers' code pads and masks: small maps as one square, padding before the linear layer. x (h, w, C)."""
    height, width, dim = x.shape
    side, interval = attention.group_size, attention.interval
    if min(height, width) <= side:
        side, interval = max(height, width), 1
    step = side * interval
    padded = F.pad(x, (0, 0, 0, -width % step, 0, -height % step))
    real = F.pad(torch.ones(height, width, dtype=torch.bool), (0, -width % step, 0, -height % step))
    out = torch.zeros_like(padded)
    pos = attention.pos
    for top in [r + p for r in range(0, len(padded), step) for p in range(interval)]:
        for left in [c + p for c in range(0, padded.shape[1], step) for p in range(interval)]:
            rows, columns = slice(top, top + step - interval + 1, interval), slice(left, left + step - interval + 1, interval)
            qkv = attention.qkv(padded[rows, columns].reshape(-1, dim))
            query, key, value = qkv.view(-1, 3, attention.num_heads, dim // attention.num_heads).unbind(1)
            token = torch.arange(side * side)
            position = torch.stack([token // side, token % side], 1)
            offset = (position[:, None] - position[None]).double()
            bias = pos.pos3(pos.pos2(pos.pos1(pos.pos_proj(offset)))).permute(2, 0, 1)
            logits = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5 + bias
            logits = logits + (~real[rows, columns].reshape(-1)) * -1e6
            mixed = torch.einsum("hqk,khd->qhd", logits.softmax(-1), value).flatten(1)
            out[rows, columns] = mixed.view(side, side, dim)
    return attention.proj(out[:height, :width])


@pytest.mark.parametrize("size", [(6, 12), (7, 5), (4, 10), (3, 8), (2, 1)])
@pytest.mark.parametrize("interval", [1, 2])
def test_attention_in_groups(size, interval):
    attention = stirred(GroupAttention(16, 2, 3, interval)).requires_grad_(False)
    x = torch.rand(2, *size, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x), torch.stack([plain_group_attention(attention, one) for one in x]))


def test_masked_keys_stay_masked_in_half_precision():
    attention = GroupAttention(16, 2, 3, 2).eval().requires_grad_(False)
    x = torch.rand(1, 7, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        got = attention(x)
    torch.testing.assert_close(got.float(), attention(x), atol=0.02, rtol=0.02)


def test_cooling_layers_stand_after_every_third_block_but_never_at_the_end():
    def cooled(name):
        with torch.device("meta"):
            layers = create_backbone(name).layers
        return [[j for j, block in enumerate(layer.blocks) if hasattr(block, "acl")] for layer in layers]

    assert cooled("crossformerpp_s") == [[], [], [2, 5, 8, 11, 14], []]
    assert cooled("crossformerpp_h") == [[2], [2], [2, 5, 8, 11, 14], []]
    assert cooled("crossformer_b") == [[], [], [], []]


# ---------------------------------------------------------------------------------------------------------- agent attention


def plain_resize(table, size, grid):
    """Pixels first, then the agents' grid: (heads, p * p, H, W) -> (heads, grid * grid, h * w)."""
    heads, agents = table.shape[:2]
    side = round(agents**0.5)
    table = F.interpolate(table, size, mode="bilinear", align_corners=False)
    table = table.reshape(heads, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(table, (grid, grid), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 2)])
def test_agent_attention(size):
    """Step by step, with tables of all rows and columns."""
    attention = stirred(AgentAttention(8, 2, 4, 3, 8))
    x = torch.rand(2, *size, 8, dtype=torch.float64)
    query, key, value = attention.qkv(x).flatten(1, 2).chunk(3, -1)
    agents = F.adaptive_avg_pool2d(query.transpose(1, 2).unflatten(2, size), 4).flatten(2).transpose(1, 2)
    local = attention.dwc(value.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
    query, key, value, agents = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (query, key, value, agents))
    far = plain_resize(attention.an_bias, size, 4) + plain_resize((attention.ah_bias + attention.aw_bias)[0], size, 4)
    table = (attention.ha_bias + attention.wa_bias)[0].permute(0, 3, 1, 2)
    near = (plain_resize(attention.na_bias, size, 4) + plain_resize(table, size, 4)).transpose(1, 2)
    gathered = (agents / 2 @ key.transpose(-2, -1) + far).softmax(-1) @ value
    out = (query / 2 @ agents.transpose(-2, -1) + near).softmax(-1) @ gathered
    expected = attention.proj(out.transpose(1, 2).flatten(2) + local).view(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_blocks_of_agent_swin():
    """The published types of the stages: AAAB, AABB, and AAMB with agents in the first two blocks of the third stage."""
    for name, agents in (("t", (2, 2, 6, 0)), ("s", (2, 2, 0, 0)), ("b", (2, 2, 2, 0))):
        with torch.device("meta"):
            model = create_backbone(f"agent_swin_{name}")
        for layer, count in zip(model.layers, agents, strict=True):
            kinds = [type(block.attn) for block in layer.blocks]
            assert kinds == [AgentAttention] * count + [BiasedWindowAttention] * (len(kinds) - count)
            assert [block.attn.shift for block in layer.blocks[count:]] == [3 * (j % 2) for j in range(count, len(kinds))]
    with torch.device("meta"):
        wide = create_backbone("agent_swin_s", pretrain_size=384)
    assert wide.layers[3].blocks[0].attn.window == (12, 12) and wide.layers[1].blocks[0].attn.ah_bias.shape[3] == 48


@pytest.mark.parametrize("name", ["agent_swin_debug", "agent_pvt_debug"])
def test_tables_of_another_size_are_resized(name, tmp_path):
    state = create_backbone(name, pretrain_size=96).state_dict()
    path = str(tmp_path / "large.pth")
    torch.save({"model": state}, path)
    axes = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}
    for key, value in create_backbone(name, pretrained=path).state_dict().items():
        axis = axes.get(key.rpartition(".")[2])
        if axis:
            lines = state[key].movedim(axis, -1).reshape(1, -1, state[key].shape[axis])
            want = F.interpolate(lines, value.shape[axis], mode="linear", align_corners=False)
            torch.testing.assert_close(value.movedim(axis, -1).reshape(want.shape), want)
        elif key.startswith("pos_embed"):
            side = round(value.shape[1] ** 0.5)
            grid = state[key].transpose(1, 2).unflatten(-1, (side * 3 // 2, -1))
            want = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False).flatten(2)
            torch.testing.assert_close(value.transpose(1, 2), want)
        else:
            assert torch.equal(state[key], value)
    same = create_backbone(name, pretrain_size=96, pretrained=path).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in same.items())


def test_the_agents_grid_may_be_any():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    model = create_backbone("agent_pvt_debug").eval()
    other = create_backbone("agent_pvt_debug", agent_grids=(3, 4, 7, 7)).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(x)[3], other(x)[3])
    names = {name.rpartition(".")[2] for name in model.no_weight_decay()}
    assert names == {*TABLES, "pos_embed1", "pos_embed2", "pos_embed3", "pos_embed4"}
