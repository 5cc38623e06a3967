"""The promises that every backbone makes."""

import urllib.request

import pytest
import torch

from mmvit.backbones import create_backbone, find_backbone, list_backbones
from mmvit.check_golden import fill_values
from mmvit.errors import UserError

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


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (45, 71)])
def test_feature_info_is_true(name, size):
    model = create_backbone(name, out_indices=(0, 1, 2, 3)).eval()
    x = torch.rand(2, 3, *size)
    maps = model(x)
    assert len(maps) == len(model.feature_info) == 4
    for feature, (channels, stride) in zip(maps, model.feature_info):
        assert feature.shape == (2, channels, *(-(-side // stride) for side in size))
    torch.testing.assert_close(model(x)[3], maps[3], rtol=0, atol=0)
    torch.testing.assert_close(create_like(name, model)(x)[0], maps[2])


def create_like(name, model):
    other = create_backbone(name, out_indices=(2, 3)).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("name", DEBUG)
def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing(name):
    gradients = []
    model = create_backbone(name, out_indices=(0, 1, 2, 3)).train()
    x = torch.rand(2, 3, 64, 64)
    for with_cp in (False, True):
        model.with_cp = with_cp
        model.zero_grad()
        sum(m.square().mean() for m in model(x)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(g.abs().max() > 0 for g in gradients[0].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], msg=key)


@pytest.mark.parametrize("name", DEBUG)
def test_frozen_stages_and_norms(name):
    model = create_backbone(name, frozen_stages=2, freeze_norm=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".2." in n or ".3." in n for n in trained)
    model(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", DEBUG)
def test_depth_grows_from_stem_to_last_stage(name):
    model = create_backbone(name)
    depths = [model.layer_depth(n) for n, _ in model.named_parameters()]
    assert depths == sorted(depths) and depths[0] == 0 and len(set(depths)) == max(depths) + 1


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
    monkeypatch.setattr("mmvit.architectures.rtdetr.print_log", lambda text, *where: messages.append(text))
    model = create_model("rtdetr_debug", backbone="presnet_18vd", backbone_pretrained=True)
    before = model.backbone.conv1.conv1_1.conv.weight.clone()
    model.init_weights()
    assert torch.equal(before, model.backbone.conv1.conv1_1.conv.weight)
    assert len(messages) == 1 and "RANDOM weights" in messages[0] and "put the file by hand" in messages[0]
    with pytest.raises(UserError, match="none.pth does not exist"):
        create_model("rtdetr_debug", backbone_pretrained=str(tmp_path / "none.pth")).init_weights()
