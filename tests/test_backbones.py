"""The promises that every backbone makes."""

import copy
import inspect
import random
import urllib.request

import pytest
import torch

from mmvit.backbones import create_backbone, find_backbone, list_backbones
from mmvit.check_golden import fill_values
from mmvit.errors import UserError
from mmvit.layers.reparam import deploy

DEBUG = list_backbones("*_debug")


def test_names():
    assert {"presnet_18vd", "presnet_34vd", "presnet_50vd", "presnet_101vd", "hgnetv2_l", "hgnetv2_x", "hgnetv2_h"} <= set(
        list_backbones()
    )
    assert list_backbones("presnet_1*") == ["presnet_101vd", "presnet_18vd"]
    assert find_backbone("PResNet50vd") == find_backbone("presnet_50vd")
    with pytest.raises(UserError, match="Did you mean 'presnet_50vd'"):
        create_backbone("presnet_50v")
    with pytest.raises(UserError, match="out_indices"):
        create_backbone("presnet_debug", out_indices=(1, 4))
    for name, width in (("mit_debug", dict(dims=(8, 16, 21, 32))), ("swin_debug", dict(num_heads=(3, 2, 2, 4)))):
        with pytest.raises(UserError, match="heads cannot share"):
            create_backbone(name, **width)
    with pytest.raises(UserError, match="No map of stride 24 can be made from strides 4, 8, 16, 32"):
        create_backbone("mit_debug", out_strides=(4, 24))


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (45, 71)])
def test_feature_info_is_true(name, size):
    model = create_with(name).eval()
    x = torch.rand(2, 3, *size)
    maps = model(x)
    assert len(maps) == len(model.feature_info) == len(model.strides)
    assert tuple(stride for _, stride in model.feature_info) == model.strides
    for feature, (channels, stride) in zip(maps, model.feature_info):
        sides = [model.map_side(side, stride) for side in size]
        assert feature.shape == (2, channels, *sides)
    torch.testing.assert_close(model(x)[-1], maps[-1], rtol=0, atol=0)
    for got, want in zip(create_like(name, model)(x), maps[-2:], strict=True):
        torch.testing.assert_close(got, want)


def create_like(name, model):
    """A copy of `model` that returns the last two stages; it lacks nothing but norms of the others."""
    other = create_backbone(name, out_indices=range(len(model.strides))[-2:]).eval()
    known = other.state_dict()
    assert all(model.layer_depth(key) == model.num_layers + 1 for key, _ in model.named_parameters() if key not in known)
    other.load_state_dict({key: value for key, value in model.state_dict().items() if key in known})
    return other


@pytest.mark.parametrize("name", DEBUG)
def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing(name):
    gradients, states = [], []
    model = wake(create_with(name, fade_steps=2)).train()
    x = image(2, model)
    model(x)  # norms that fade have two parts from the second step on
    state = copy.deepcopy(model.state_dict())
    for with_cp in (False, True):
        model.load_state_dict(state)
        model.with_cp = with_cp
        model.zero_grad()
        torch.manual_seed(0)  # stochastic depth draws the same again
        maps = model(x)
        sum((m * torch.linspace(-1, 1, m.numel()).view(m.shape)).mean() for m in maps).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        states.append(copy.deepcopy(model.state_dict()))
    assert all(g.abs().max() > 0 for g in gradients[0].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], msg=key)
    counted = [key for key in state if not key.endswith("num_batches_tracked") and "running" not in key]
    assert all(torch.equal(states[0][key], states[1][key]) for key in counted)


def wake(model):
    """Small random numbers in the weights that start as zeros, as training makes them: zeros stop the gradients before them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and not name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def stage_parameters(model):
    """For each stage, the names of the parameters that its output depends on in training and no earlier output does."""
    model.train()
    names, parameters = zip(*model.named_parameters())
    stages, seen = [], set()
    for output in model(image(2, model)):
        gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(names, gradients) if gradient is not None}
        stages.append(reached - seen)
        seen |= reached
    assert seen == set(names)
    return stages


def image(batch, model):
    """Random images whose coarsest map is at least 2x2: batch norms need some pixels."""
    side = max(64, 2 * max(model.strides))
    return torch.rand(batch, 3, side, side)


def arguments(name):
    """The names of the constructor arguments of a backbone."""
    return {key for cls in find_backbone(name)[0].__mro__[:-1] for key in inspect.signature(cls.__init__).parameters}


def create_with(name, **settings):
    """A backbone that returns all its stages, with those of `settings` that its family has."""
    stages = range(len(find_backbone(name)[0].strides))
    return create_backbone(name, out_indices=stages, **{k: v for k, v in settings.items() if k in arguments(name)})


def is_frozen(module):
    return any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", DEBUG)
def test_frozen_stages_and_norms(name):
    whole = create_with(name)
    stages = stage_parameters(whole)
    ends = {n for n, _ in whole.named_parameters() if whole.layer_depth(n) > whole.num_layers}
    few = min(2, len(stages)) if whole.sequential else 0  # outputs that depend on frozen parameters only
    for frozen, expected in (
        (-1, set()),
        (0, {n for n in set().union(*stages) if whole.layer_depth(n) == 0}),
        (2, set().union(*stages[:2]) if whole.sequential else up_to_depth_of_half(whole)),
    ):
        model = create_with(name, frozen_stages=frozen, freeze_norm=True, drop_path_rate=0.9).train()
        names = {n for n, _ in model.named_parameters()}  # frozen norms have none
        found = {n for n, p in model.named_parameters() if not p.requires_grad}
        following = stages[max(frozen, 0)] if max(frozen, 0) < len(stages) else ()
        merging = {n for n in following if ".downsample." in n}  # Swin's is a part of the stage before it
        assert (expected - ends) & names <= found <= expected | merging
    assert all(p.requires_grad for n, p in model.named_parameters() if n in ends)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = image(8, model)
    trained, evaluated = model(x), model.eval()(x)
    fixed = {f"{n}.{k}" for n, m in model.named_modules() if n and is_frozen(m) for k in m.state_dict()}
    if "freeze_norm" in arguments(name):
        fixed = set(before)
    assert all(torch.equal(before[k], model.state_dict()[k]) for k in fixed)
    for got, want in zip(trained[:few], evaluated[:few]):
        torch.testing.assert_close(got, want)


def up_to_depth_of_half(model):
    """What two of four frozen stages are where every output depends on all of the network: the first half of the depth."""
    return {n for n, _ in model.named_parameters() if model.layer_depth(n) <= model.num_layers // 2}


@pytest.mark.parametrize("name", DEBUG)
def test_depth_grows_from_stem_to_last_block(name):
    model = create_with(name)
    met = []
    for module_name, module in model.named_modules():
        own = [f"{module_name}.{n}" for n, _ in module.named_parameters(recurse=False)]
        if own and module_name:
            module.register_forward_pre_hook(lambda *_, own=own: met.extend(own))
    stages = stage_parameters(model)
    depths = [d for d in map(model.layer_depth, met) if d <= model.num_layers]
    assert depths == sorted(depths) and depths[0] == 0
    every = [{model.layer_depth(n) for n in stage} - {model.num_layers + 1} for stage in stages]
    assert set.union(*every) == set(range(model.num_layers + 1))
    if model.sequential:
        assert all(max(before) < min(after) for before, after in zip(every, every[1:]))


@pytest.mark.parametrize("name", DEBUG)
def test_weight_decay_is_refused_to_known_parameters_only(name):
    model = create_with(name)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names and model.dense_only() <= set(model.state_dict())


@pytest.mark.parametrize("name", DEBUG)
def test_state_dict_round_trip_and_determinism(name):
    """The state dict is all that a network needs, and evaluation neither draws random numbers nor depends on them."""
    model, other = create_with(name).eval(), create_with(name).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert sum(p.numel() for p in model.parameters()) < 150_000
    x = torch.rand(2, 3, 72, 56)
    torch.manual_seed(1)
    drawn = torch.get_rng_state(), random.getstate()
    maps = model(x)
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    torch.manual_seed(2)
    for again in (model(x), other(x)):
        for got, want in zip(again, maps, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(model(x[:1])[-1], maps[-1][:1], rtol=1e-4, atol=1e-5)


def stir(model):
    """Random statistics and affines in all batch norms, and no weights of zeros: as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), torch.Tensor):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.2, generator=generator)
    return wake(model)


@pytest.mark.parametrize("name", DEBUG)
def test_deployed_network_computes_the_same(name):
    model = stir(create_with(name)).eval()
    merged = deploy(copy.deepcopy(model))
    assert not any(p.requires_grad for p in merged.parameters())
    for size in ((64, 64), (45, 71)):
        x = torch.rand(2, 3, *size)
        with torch.no_grad():
            for got, want in zip(merged(x), model(x), strict=True):
                assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_position_embeddings_and_layer_scales_have_no_weight_decay():
    assert create_backbone("pvt_debug").no_weight_decay() == {f"pos_embed{i}" for i in (1, 2, 3, 4)}
    scales = create_backbone("convnext_debug").no_weight_decay()
    assert len(scales) == 7 and all(name.endswith(".gamma") for name in scales)
    assert not create_backbone("mit_debug").no_weight_decay()


@pytest.mark.parametrize(
    "name, millions, head",  # published parameters of the classifier, width of its last linear layer
    [
        *(("pvt_" + n, m, 512) for n, m in (("tiny", 13.2), ("small", 24.5), ("medium", 44.2), ("large", 61.4))),
        ("pvt_v2_b0", 3.7, 256),
        *(
            ("pvt_v2_b" + n, m, 512)
            for n, m in (("1", 14.0), ("2", 25.4), ("2_li", 22.6), ("3", 45.2), ("4", 62.6), ("5", 82.0))
        ),
        ("convnext_tiny", 28.6, 768),
        *(("convnext_" + n, m, w) for n, m, w in (("small", 50.2, 768), ("base", 88.6, 1024), ("large", 197.8, 1536))),
        ("convnext_xlarge", 350.2, 2048),
        *(("mit_b" + n, m, None) for n, m in (("0", 3.3), ("1", 13.2), ("2", 24.2), ("3", 44.1), ("4", 60.8), ("5", 81.4))),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions, head):
    with torch.device("meta"):
        model = create_backbone(name)
    ends = model.dense_only()
    count = sum(p.numel() for n, p in model.named_parameters() if n not in ends)
    classifier = 0 if head is None else 1000 * (head + 1)
    assert round((count + classifier) / 1e6, 1) == pytest.approx(millions, abs=0.05)


def classifier_file(path, model, rename, extra):
    """Write `model` as an official classification checkpoint: without what is dense only, with a classifier."""
    state = {rename(k): torch.rand_like(v) for k, v in model.state_dict().items() if k not in model.dense_only()}
    torch.save({"model": {**state, **{k: torch.rand(3) for k in extra}}}, path)
    return state


@pytest.mark.parametrize(
    "name, extra",
    [
        ("convnext_debug", ("norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("pvt_debug", ("cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias")),
        ("pvt_v2_debug", ("head.weight", "head.bias")),
        ("mit_debug", ("head.weight", "head.bias")),
    ],
)
def test_classification_checkpoints_load(name, extra, tmp_path):
    def rename(key):
        return key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")

    path = tmp_path / "weights.pth"
    official = classifier_file(path, create_with(name), rename, extra)
    model = create_backbone(name, out_indices=(0, 1, 2, 3), pretrained=str(path))
    fresh = create_backbone(name, pretrained=str(path))
    for key, value in model.state_dict().items():
        if key in model.dense_only():
            assert torch.equal(value, torch.ones_like(value) * key.endswith("weight"))
        else:
            torch.testing.assert_close(value, official[rename(key)], rtol=0, atol=0)
            torch.testing.assert_close(fresh.state_dict()[key], value, rtol=0, atol=0)
    lost = next(iter(official))
    torch.save({"model": {k: v for k, v in official.items() if k != lost}}, path)
    with pytest.raises(UserError, match=f"1 keys are missing.*{lost}"):
        create_backbone(name, pretrained=str(path))


def openmmlab_peer(name):
    """mmdetection's or mmsegmentation's network of the same structure."""
    from mmvit.ops import prepare_openmmlab

    prepare_openmmlab()
    settings = dict(embed_dims=4, num_layers=[1, 2, 1, 1], num_heads=[1, 2, 5, 8])
    if name == "mit_debug":
        from mmseg.models.backbones import MixVisionTransformer

        return MixVisionTransformer(**settings, mlp_ratio=2, qkv_bias=True)
    from mmdet.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2

    cls = {"pvt_debug": PyramidVisionTransformer, "pvt_v2_debug": PyramidVisionTransformerV2}[name]
    return cls(**settings, mlp_ratios=[2, 2, 2, 2])


@pytest.mark.parametrize("name", ["pvt_debug", "pvt_v2_debug", "mit_debug"])
def test_openmmlab_weights_give_openmmlab_maps(name):
    """mmdetection's PVT and PVT v2 and mmsegmentation's MiT, at sizes that resize the position embeddings, too."""
    peer = openmmlab_peer(name)
    state = {k: torch.from_numpy(fill_values(k, v.shape)) for k, v in peer.state_dict().items()}
    peer.load_state_dict(state)
    model = create_backbone(name, dims=(4, 8, 20, 32))
    model.load_state_dict(model.convert(state))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # theirs
    model, peer = model.double().eval(), peer.double().eval()
    for size in ((224, 224), (70, 101)):
        x = torch.rand(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            for got, want in zip(model(x), peer(x), strict=True):
                torch.testing.assert_close(got, want)


def test_mit_and_convnext_take_the_other_published_names():
    """MiT's first code has separate queries and no 1x1 convolutions; mmpretrain has other names for ConvNeXt's layers."""
    for name, rename in (
        ("mit_debug", lambda k: k.replace("mlp.dwconv", "mlp.dwconv.dwconv")),
        (
            "convnext_debug",
            lambda k: "backbone." + k.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv"),
        ),
    ):
        source, model = create_with(name), create_with(name)
        theirs = {
            rename(k): v[:, :, None, None] if "pwconv" in k and v.ndim == 2 else v for k, v in source.state_dict().items()
        }
        model.load_state_dict(model.convert(theirs))
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.state_dict().items())


def test_position_embeddings_of_pvt_follow_the_map():
    """The table is used as it is for its own grid only; maps that happen to have as many pixels get a resized one."""
    model = create_backbone("pvt_debug")
    assert model.position(1, 56, 56).shape == (1, 56, 56, 16)
    with torch.no_grad():
        model.pos_embed1.copy_(torch.arange(56.0).repeat(56)[None, :, None].expand(1, -1, 8))  # each entry: its column
    torch.testing.assert_close(model.position(0, 56, 56)[0, 3, :, 0], torch.arange(56.0))
    columns = model.position(0, 49, 64)[0, 48, :, 5]
    torch.testing.assert_close(columns, ((torch.arange(64) + 0.5) * 56 / 64 - 0.5).clamp(0, 55))


def test_maps_smaller_than_the_reduction_are_filled_up():
    from mmvit.layers.attention import SpatialReductionAttention

    attention = SpatialReductionAttention(8, 2, 4, torch.nn.LayerNorm)
    x = torch.rand(1, 3, 6, 8)
    filled = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
    assert attention(x).shape == x.shape
    torch.testing.assert_close(attention(x), attention(filled)[:, :3])


def test_hgnetv2_is_that_of_transformers():
    """The same weights give the same maps in `transformers`' independent implementation (no golden records its outputs)."""
    from transformers import HGNetV2Backbone, HGNetV2Config

    peer = HGNetV2Backbone(
        HGNetV2Config(
            stem_channels=[3, 32, 48],
            stage_in_channels=[48, 128, 512, 1024],
            stage_mid_channels=[48, 96, 192, 384],
            stage_out_channels=[128, 512, 1024, 2048],
            stage_num_blocks=[1, 1, 3, 1],
            stage_downsample=[False, True, True, True],
            stage_light_block=[False, False, True, True],
            stage_kernel_size=[3, 3, 5, 5],
            stage_numb_of_layers=[6, 6, 6, 6],
            depths=[1, 1, 3, 1],
            hidden_sizes=[128, 512, 1024, 2048],
            hidden_act="relu",
            use_learnable_affine_block=False,
            out_features=["stage2", "stage3", "stage4"],
        )
    )
    weights = {k: torch.from_numpy(fill_values(k, v.shape)).to(v.dtype) for k, v in peer.state_dict().items()}
    peer.load_state_dict(weights)
    renamed = {}
    for key, value in weights.items():
        for theirs, ours in (
            ("embedder.", "stem."),
            ("encoder.", ""),
            ("aggregation.0", "aggregation_squeeze_conv"),
            ("aggregation.1", "aggregation_excitation_conv"),
            (".convolution.", ".conv."),
            (".normalization.", ".norm."),
        ):
            key = key.replace(theirs, ours)
        renamed[key] = value
    model = create_backbone("hgnetv2_l")
    model.load_state_dict(renamed)
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        for got, want in zip(model.eval()(x), peer.eval()(x).feature_maps, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_pretrained_weights_of_a_file(tmp_path):
    source = create_backbone("hgnetv2_debug")
    official = {k.replace(".norm.", ".bn.").replace("2a.conv.", "2a.conv.1."): v for k, v in source.state_dict().items()}
    torch.save({**official, "fc.weight": torch.zeros(3, 3)}, tmp_path / "weights.pth")
    model = create_backbone("hgnetv2_debug", pretrained=str(tmp_path / "weights.pth"))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(UserError, match="do not fit PResNet.*same variant"):
        create_backbone("presnet_debug", pretrained=str(tmp_path / "weights.pth"))


def test_training_without_the_pretrained_weights_says_so(tmp_path, monkeypatch):
    """A recipe's own weights that cannot be had give a warning; a file that the user named gives an error."""
    from mmvit.architectures import create_model

    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps the proxies it saw first
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    messages = []
    monkeypatch.setattr("mmvit.architectures.base.print_log", lambda text, *where: messages.append(text))
    model = create_model("rtdetr_debug", backbone="presnet_18vd", backbone_pretrained=True)
    before = model.backbone.conv1.conv1_1.conv.weight.clone()
    model.init_weights()
    assert torch.equal(before, model.backbone.conv1.conv1_1.conv.weight)
    assert len(messages) == 1 and "RANDOM weights" in messages[0] and "put the file by hand" in messages[0]
    with pytest.raises(UserError, match="none.pth does not exist"):
        create_model("rtdetr_debug", backbone_pretrained=str(tmp_path / "none.pth")).init_weights()
