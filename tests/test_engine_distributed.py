"""Two processes on the CPU (gloo, started by torchrun) do what one process does with the joint batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_tools import ROOT, tiny_data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """Folder with the steps of one and of two processes, and what the two printed."""
    out = tmp_path_factory.mktemp("ddp")
    data = tiny_data(out)
    script = [str(ROOT / "tests" / "ddp_run.py"), str(data), str(out)]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} | dict(
        OMP_NUM_THREADS="1"
    )
    alone = subprocess.run([sys.executable, *script], env=environment, capture_output=True, text=True, timeout=120)
    assert alone.returncode == 0, alone.stderr
    both = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert both.returncode == 0, both.stderr[-3000:]
    return out, both.stdout


def test_gradients_are_those_of_the_joint_batch(run):
    one, first, second = (torch.load(run[0] / name) for name in ("step_1_0.pth", "step_2_0.pth", "step_2_1.pth"))
    assert one["images"] == [i for pair in zip(first["images"], second["images"]) for i in pair]
    for name, value in one["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        error = (first["gradients"][name] - value).abs().max()
        assert error <= 1e-3 * value.abs().max() + 1e-6, (name, error, value.abs().max())  # weights are float32 around 1
    moved = sum(bool(value.abs().max() > 1e-4) for value in one["gradients"].values())
    assert moved > 0.8 * len(one["gradients"])


def test_all_processes_skip_the_step_that_one_cannot_take(run):
    lines = run[1].splitlines()
    for rank in (0, 1):
        for iteration, stepped in ((0, True), (1, False), (2, True)):
            assert f"rank {rank} iteration {iteration} stepped {stepped}" in lines
    assert (run[0] / "skip/bad_batches/iter_1.pth").exists() and not list((run[0] / "skip").glob("bad_batches/*rank1*"))


def test_a_signal_to_one_process_stops_both_at_the_same_step(run):
    lines = run[1].splitlines()
    for rank in (0, 1):
        assert f"rank {rank} stopped after iteration 1 with status 143" in lines
        assert f"rank {rank} resumed to 3 of 3" in lines
