"""Two processes on the CPU (gloo, started by torchrun) do what one process does with the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_tools import ROOT, tiny_data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """Folder with the steps of one and of two processes, and what the two printed."""
    out = tmp_path_factory.mktemp("ddp")
    data = tiny_data(out, val=5)
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
        assert (first["gradients"][name] - value).abs().max() <= 1e-4 * value.abs().max(), name
    flowing = sum(bool(value.any()) for value in one["gradients"].values())
    assert flowing > 0.95 * len(one["gradients"])


def test_evaluation_finds_what_one_process_finds(run):
    one, two = (json.loads((run[0] / f"scores_{n}.detections.json").read_text()) for n in (1, 2))
    key = lambda d: (d["image_id"], -d["score"])  # noqa: E731
    one, two = sorted(one, key=key), sorted(two, key=key)
    assert len({d["image_id"] for d in one}) == 5 and len(one) == len(two) > 100  # 5 images: one process has one more
    assert [d["image_id"] for d in one] == [d["image_id"] for d in two]
    assert np.allclose([d["score"] for d in one], [d["score"] for d in two], atol=1e-5)
    scores = [json.loads((run[0] / f"scores_{n}.json").read_text()) for n in (1, 2)]
    assert scores[0].keys() == scores[1].keys() and np.allclose(list(scores[0].values()), list(scores[1].values()), atol=1e-3)


def test_all_processes_skip_the_step_that_one_cannot_take(run):
    for rank in (0, 1):
        for iteration, stepped in ((0, True), (1, False), (2, True)):
            assert f"rank {rank} iteration {iteration} stepped {stepped}" in run[1]
    assert (run[0] / "skip/bad_batches/iter_1.pth").exists() and not list((run[0] / "skip").glob("bad_batches/*rank1*"))


def test_a_signal_to_one_process_stops_both_at_the_same_step(run):
    for rank in (0, 1):
        assert f"rank {rank} stopped after iteration 1 with status 143" in run[1]
        assert f"rank {rank} resumed to 3 of 3" in run[1]
