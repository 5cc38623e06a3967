"""The benchmark measures what it says."""

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


def test_wrong_arguments():
    import argparse

    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    with pytest.raises(UserError, match="multiple of 32"):
        benchmark.run(parser.parse_args(["rtdetr_debug", "--size", "100"]))
    with pytest.raises(UserError, match="no model"):
        benchmark.run(parser.parse_args(["rtdetr_r51"]))


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
