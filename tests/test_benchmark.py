"""The benchmark measures what it says."""

import argparse
import functools
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from mmvit import benchmark
from mmvit.architectures import create_model
from mmvit.backbones import create_backbone, find_backbone, list_backbones
from mmvit.errors import UserError


def test_flops_and_memory_of_known_calls():
    conv, x = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.rand(1, 3, 10, 10)
    assert benchmark.count_flops(lambda: conv(x)) == 2 * 8 * 100 * 27

    def run():
        a = torch.ones(1000)
        b = a + 1  # both live: 8000 bytes
        del a
        return b[:10] * 2

    assert 8000 <= benchmark.peak_memory(run, torch.device("cpu")) <= 8100


def test_a_small_model(tmp_path, capsys):
    result = benchmark.benchmark_model("rtdetr_debug", size=64, rounds=1)
    assert set(result["rows"]) == {"mmvit, eager", "mmvit, deploy"}
    assert result["gap"]["mmvit, deploy"] < 1e-4
    assert result["params"] == sum(p.numel() for p in create_model("rtdetr_debug").parameters())
    benchmark.print_report(result)
    assert "rtdetr_debug" in capsys.readouterr().out
    json.dumps(result)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(words)


def test_wrong_arguments():
    for words, message in (
        (["rtdetr_debug", "--size", "100"], "multiple of 32"),
        (["rtdetr_r51"], "no model"),
        (["rtdetr_debug", "--rounds", "0"], "at least 1"),
        ([], "name one or more models"),
        (["rtdetr_debug", "--heads"], "name one or more models"),
        (["--heads", "--metrics"], "name one or more models"),
        (["--metrics", "--size", "64"], "leave out --size"),
        (["--masks", "--heads"], "name one or more models"),
        (["--backbones", "swin_debug", "--masks"], "name one or more models"),
        (["--heads", "--reference", "swin_debug"], "is for --backbones"),
        (["--backbones", "swin_debgu"], "Did you mean 'swin_debug'"),
        (["--backbones", "none_*"], "No backbone fits"),
        (["--backbones", "swin_debug", "--reference", "swin_debgu"], "Did you mean 'swin_debug'"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.run(arguments(*words))


def test_heads_take_turns_on_the_same_features(tmp_path, capsys, monkeypatch):
    from mmvit.benchmark import heads

    monkeypatch.setattr(heads, "BACKBONES", ("mit_debug", "swin_debug"))
    assert benchmark.run(arguments("--heads", "--size", "128", "--rounds", "1", "--json", str(tmp_path / "h.json"))) == 0
    result = json.loads((tmp_path / "h.json").read_text())
    rows = {(row["backbone"], row["head"]): row for row in result["rows"]}
    assert set(rows) == {(b, h) for b in ("mit_debug", "swin_debug") for h in ("UPerNet", "SegFormer", "VWFormer")}
    for (backbone, head), row in rows.items():
        peer = rows[backbone, "UPerNet"]
        assert row["flops_ratio"] == row["flops"] / peer["flops"] and row["seconds_ratio"] == row["seconds"] / peer["seconds"]
        assert row["params"] > 0 and (row["params_ratio"] == 1.0) == (head == "UPerNet")
    table = capsys.readouterr().out
    assert table.count("(1.00x)") >= 6 and "`swin_debug` | VWFormer" in table and "128x128" in table


@pytest.mark.parametrize("backbone", ["swin_tiny", "mit_b0"])
def test_vwformer_takes_at_most_half_of_upernets_operations(backbone):
    """The paper's claim, at the size of the README's table; nothing is computed."""
    from mmvit.architectures.segmenter import build_head, head_settings
    from mmvit.backbones import create_backbone

    with torch.device("meta"):
        features = create_backbone(backbone).feature_info
        maps = [torch.rand(1, c, 512 // s, 512 // s) for c, s in features]
        flops = {}
        for method in ("upernet", "vwformer"):
            head = build_head(head_settings(method, backbone)[0], features, 150).eval()
            flops[method] = benchmark.count_flops(lambda head=head: head(maps))
    assert flops["vwformer"] <= 0.5 * flops["upernet"]
    assert flops["upernet"] == pytest.approx(2 * {"swin_tiny": 211.57e9, "mit_b0": 210.03e9}[backbone], rel=0.01)


def test_metrics_agree():
    result = benchmark.benchmark_metrics(rounds=5, size=(256, 512))
    assert result["gap"] < 1e-4  # mmseg rounds
    ours, *peers = result["rows"].values()
    assert ours["ratio"] == 1.0 and all(peer["ratio"] > 0 for peer in peers)
    assert 0 < ours["bytes"] < 8 * 2**20
    table = benchmark.metrics_table(result)
    assert "256x512" in table and table.count("\n| m") == 3
    json.dumps(result)


# ------------------------------------------------------------------------------------------------------------ mask classifiers


def test_mask_classifiers_take_turns(tmp_path, capsys, monkeypatch):
    from mmvit.benchmark import masks

    debug = functools.partial(masks.benchmark_masks, backbone="resnet_debug", peer_backbone="swin_debug", large=(64, 128))
    monkeypatch.setattr(masks, "benchmark_masks", debug)
    assert benchmark.run(arguments("--masks", "--size", "64", "--rounds", "1", "--json", str(tmp_path / "m.json"))) == 0
    result = json.loads((tmp_path / "m.json").read_text())
    rows = {(row["method"], row["form"]): row for row in result["methods"]}
    assert set(rows) == {(method, form) for method in masks.METHODS for form in ("eager", "deploy")}
    for (_, form), row in rows.items():
        first = rows["Mask2Former", form]
        for figure in ("params", "flops", "seconds"):
            values, ratios = row[figure], row[f"{figure}_ratio"]
            assert values["both decoders"] == values["pixel decoder"] + values["decoder"]
            assert all(ratios[part] == values[part] / first[figure][part] for part in values)
        for figure in ("params", "flops"):
            assert row[figure]["network"] == sum(row[figure][part] for part in masks.PARTS)
    plain = create_model("pem_resnet_debug", num_classes=masks.CLASSES)
    assert rows["PEM", "eager"]["params"]["network"] == sum(p.numel() for p in plain.parameters())
    for row in result["memory"]:
        assert row["queries"] == 200 and 0 < row["bytes"] <= row["bytes_of_many"] <= 1.02 * row["bytes"]
    table = capsys.readouterr().out
    assert "kMaX-DeepLab, deploy" in table and "transformers" in table and "64x128" in table


def test_mask2former_equals_that_of_transformers():
    """The comparison is of one network: the same logits, to the precision of float64."""
    pytest.importorskip("transformers")
    from mmvit.benchmark.mask2former_peer import create_peer, with_our_names

    model = create_model("mask2former_swin_debug", num_classes=7).eval().double()
    peer = create_peer(model).double()
    model.load_state_dict(with_our_names(peer.state_dict(), model))
    images = torch.rand(2, 3, 128, 160, dtype=torch.float64)
    with torch.inference_mode():
        logits, masks = model(images)
        wanted = peer(pixel_values=images)
    torch.testing.assert_close(logits, wanted.class_queries_logits)
    torch.testing.assert_close(masks, wanted.masks_queries_logits)
    assert logits.std(1).min() > 1e-4  # the queries differ
    state = peer.state_dict()
    state["new"] = state.pop("class_predictor.weight")
    with pytest.raises(UserError, match="other names than known"):
        with_our_names(state, model)
    with pytest.raises(UserError, match="Compare with a Swin"):
        create_peer(create_model("mask2former_resnet_debug"))


def test_growth_of_the_process():
    from mmvit.benchmark.resident import resident_growth

    resident_growth(lambda: np.ones(1 << 20))
    found = resident_growth(lambda: np.ones(1 << 24))  # 128 MiB
    assert found is None or 100 * 2**20 < found < 200 * 2**20


# ------------------------------------------------------------------------------------------------------------------- backbones


def test_backbones_beside_a_reference(tmp_path, capsys):
    words = ("swin_debug", "resnet_de*", "--reference", "mit_debug", "--size", "64", "--rounds", "2")
    assert benchmark.run(arguments("--backbones", *words, "--json", str(tmp_path / "b.json"))) == 0
    result = json.loads((tmp_path / "b.json").read_text())
    swin, resnet = result["rows"]
    assert (swin["backbone"], resnet["backbone"], result["sizes"]) == ("swin_debug", "resnet_debug", [64])
    for row in (swin, resnet):
        model = create_backbone(row["backbone"]).eval()
        assert row["params"] == sum(p.numel() for p in model.parameters())
        assert row["flops"] == benchmark.count_flops(lambda model=model: model(torch.rand(1, 3, 64, 64)))
        assert row["ratio"] == row["seconds"] / row["reference_seconds"] and row["bytes"] > 3 * 8 * 16 * 16
    assert swin["deploy"] is None and resnet["deploy"]["ratio"] == resnet["deploy"]["seconds"] / resnet["reference_seconds"]
    table = capsys.readouterr().out
    assert "latency (to mit_debug)" in table and "| `swin_debug` | 64 |" in table
    assert benchmark.backbones_table(result).splitlines()[:4] == table.splitlines()[:4]


def test_all_backbones_but_the_debug_ones_are_the_default():
    from mmvit.benchmark.backbones import chosen

    assert chosen([]) == [name for name in list_backbones() if not name.endswith("debug")]
    assert chosen(["swin_t*", "swin_tiny", "Swin-Tiny".replace("-", "_")]) == list_backbones("swin_t*")


def test_one_that_fails_is_told_and_the_others_measured(capsys, monkeypatch):
    from mmvit.backbones import MiT

    def broken(self, x):
        raise ValueError("no such size")

    monkeypatch.setattr(MiT, "forward", broken)
    words = ("mit_debug", "swin_debug", "--reference", "swin_debug", "--size", "64", "--rounds", "1")
    assert benchmark.run(arguments("--backbones", *words)) == 1
    table = capsys.readouterr().out
    assert "`mit_debug` | 64 | failed: ValueError: no such size" in table and "(1.00x)" in table


class Timm:
    """A library with timm's interface: networks that compute what `backbone` does, with entries under timm's names."""

    __version__ = "1.0"

    def __init__(self, backbone: str, rename):
        self.backbone, self.rename = backbone, rename

    def create_model(self, name: str, num_classes: int, **settings) -> nn.Module:
        if "strict_img_size" in settings:
            raise TypeError("unexpected keyword argument 'strict_img_size'")
        if settings.get("img_size", (0, 0))[0] > 64:
            raise AssertionError("too large\nfor this network")
        inner, rename = create_backbone(self.backbone), self.rename

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def state_dict(self, *args, **kwargs):
                return {rename(k): v for k, v in inner.state_dict().items() if k not in inner.dense_only()}

            def load_state_dict(self, state):
                return inner.load_state_dict({k: state[rename(k)] for k in inner.state_dict() if rename(k) in state}, False)

            def forward_intermediates(self, x, intermediates_only, output_fmt, norm):
                return list(inner(x))

        return Network()


def to_timm(key: str) -> str:
    """Our names of PVT v2 -> timm's."""
    key = re.sub(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", key)
    key = re.sub(r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm.", key)
    return re.sub(
        r"^patch_embed(\d)\.", lambda m: "patch_embed." if m[1] == "1" else f"stages.{int(m[1]) - 1}.downsample.", key
    )


@pytest.mark.parametrize(
    ("backbone", "rename", "same"),
    [
        ("pvt_v2_debug", to_timm, True),  # by name
        ("pvt_v2_debug", lambda key: f"other.{key}", True),  # by order
        ("swin_debug", lambda key: f"other.{key}", False),  # another network
    ],
)
def test_a_peer_of_timm_gets_the_same_weights(backbone, rename, same, monkeypatch):
    from mmvit.benchmark import backbones, timm_peer

    monkeypatch.setattr(timm_peer, "NAMES", ((r"(pvt_v2_debug)", r"\1_224"),))
    monkeypatch.setattr(backbones, "import_timm", lambda: Timm(backbone, rename))
    result = backbones.benchmark_backbones(["pvt_v2_debug"], (64, 96), rounds=1, reference="pvt_v2_debug")
    small, large = result["rows"]
    assert small["timm"]["name"] == "pvt_v2_debug_224" and small["timm"]["seconds"] > 0 and small["timm"]["bytes"] > 0
    assert small["timm"]["ratio"] == small["seconds"] / small["timm"]["seconds"]
    assert small["timm"]["gap"] == 0.0 if same else small["timm"]["gap"] is None
    assert large["timm"] == dict(name="pvt_v2_debug_224", error="AssertionError: too large")
    table = benchmark.backbones_table(result)
    assert ("different weights" in table) == (not same) and "does not take this size" in table and "timm: 1.0." in table


def test_names_of_timm():
    from mmvit.benchmark.timm_peer import timm_name

    names = {name: timm_name(name) for name in list_backbones()}
    assert names["swin_base_window12"] == "swin_base_patch4_window12_384" and names["pvt_v2_b2_li"] == "pvt_v2_b2_li"
    assert names["hgnetv2_l"] == "hgnetv2_b4" and names["vit_deit_tiny"] == "deit_tiny_patch16_224"
    assert names["mit_b0"] is None and names["swin_t_prepbn"] is None
    families = {cls.family for cls, _ in (find_backbone(name) for name, theirs in names.items() if theirs)}
    assert families >= {"swin", "convnext", "pvt_v2", "poolformer", "efficientformer", "nextvit", "resnet", "vit"}


@pytest.mark.parametrize("name", sorted(benchmark.PEERS))
def test_weights_of_every_peer_fit(name):
    """Names and shapes of transformers' variants after conversion, without computing anything."""
    with torch.device("meta"):
        peer, model = benchmark.create_peer(name), create_model(name)
    converted = model.convert(peer.state_dict())
    ours = model.state_dict()
    required = {k for k in ours if not k.endswith("num_batches_tracked")}
    assert required <= set(converted)
    assert all(converted[k].shape == ours[k].shape for k in required)
    assert all(k.endswith("num_batches_tracked") for k in set(converted) - set(ours))
