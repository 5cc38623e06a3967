"""The benchmark measures what it says."""

import argparse
import json

import pytest
import torch
from torch import nn

from mmvit import benchmark
from mmvit.architectures import create_model
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


def test_metrics_agree_and_ours_is_faster():
    result = benchmark.benchmark_metrics(rounds=5, size=(256, 512))
    assert result["gap"] < 1e-4  # mmseg rounds
    ours, *peers = result["rows"].values()
    assert ours["ratio"] == 1.0 and all(peer["ratio"] > 3 for peer in peers)
    assert 0 < ours["bytes"] < 8 * 2**20
    table = benchmark.metrics_table(result)
    assert "256x512" in table and table.count("\n| m") == 3
    json.dumps(result)


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
