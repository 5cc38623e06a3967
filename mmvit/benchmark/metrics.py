"""The mIoU metric against mmseg's `IoUMetric`, on pictures of the size of Cityscapes."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np
import torch

import mmvit.ops  # noqa: F401 - stands in for the operators of mmcv that mmseg imports
from mmvit.engine.cost import peak_memory
from mmvit.evaluation import SemanticMetric

SIZE = (1024, 2048)
CLASSES = 19
OURS, PEER, PEER_WIDE = "mmvit SemanticMetric", "mmseg IoUMetric", "mmseg IoUMetric, int64 predictions as its models make them"


def street(seed: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A sample as the runner hands it to metrics: a label in blocks, 5 % ignored, and a prediction that is 80 % right."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, CLASSES, (-(-size[0] // 32), -(-size[1] // 32)), dtype=np.uint8)
    label = np.kron(blocks, np.ones((32, 32), np.uint8))[: size[0], : size[1]].copy()
    found = np.where(rng.random(size) < 0.2, rng.integers(0, CLASSES, size, dtype=np.uint8), label)
    label[rng.random(size) < 0.05] = 255
    planes = {"pred_sem_seg": found, "gt_sem_seg": label}
    return {"img_id": seed, "img_path": f"{seed}.png"} | {k: {"data": torch.from_numpy(v)[None]} for k, v in planes.items()}


def _metrics() -> dict[str, Any]:
    from mmseg.evaluation import IoUMetric

    metrics = {OURS: SemanticMetric(), PEER: IoUMetric(prefix="mmseg"), PEER_WIDE: IoUMetric(prefix="mmseg")}
    for metric in metrics.values():
        metric.dataset_meta = dict(classes=tuple(f"class {i}" for i in range(CLASSES)))
    return metrics


def _samples(seed: int, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    sample = street(seed, size)
    wide = {**sample, "pred_sem_seg": {"data": sample["pred_sem_seg"]["data"].long()}}
    return {OURS: sample, PEER: sample, PEER_WIDE: wide}


def benchmark_metrics(rounds: int = 10, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Time and memory that a picture costs in each metric, from prediction and label to counts.

    The metrics take turns over the same `rounds` pictures, so that all meet the same machine. One picture before them warms up.

    Returns:
        settings, ``gap`` (largest difference of mIoU, mAcc or aAcc to ours, as a fraction; mmseg rounds to 1e-4), and
        ``rows``: name -> ``seconds`` a picture (median), ``ratio`` to ours, and ``bytes`` held at the peak of one picture.
    """
    metrics = _metrics()
    times: dict[str, list[float]] = {name: [] for name in metrics}
    for seed in range(rounds + 1):
        samples = _samples(seed, size)
        for name, metric in metrics.items():
            start = time.perf_counter()
            metric.process({}, [samples[name]])
            times[name].append(time.perf_counter() - start)
    bytes_held = {name: _peak(metric, samples[name]) for name, metric in _metrics().items()}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # mmseg prints its class table
        scores = {name: metric.evaluate(rounds + 1) for name, metric in metrics.items()}
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    return dict(
        size=list(size),
        classes=CLASSES,
        rounds=rounds,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        gap=max(_gap(scores[OURS], scores[name]) for name in (PEER, PEER_WIDE)),
        rows={
            name: dict(seconds=seconds[name], ratio=seconds[name] / seconds[OURS], bytes=bytes_held[name]) for name in metrics
        },
    )


def _gap(ours: dict[str, float], peer: dict[str, float]) -> float:
    return max(abs(ours[key] - float(peer[f"mmseg/{key}"]) / 100) for key in ("mIoU", "mAcc", "aAcc"))


def _peak(metric: Any, sample: dict[str, Any]) -> int:
    """Bytes of tensors and of NumPy arrays that one picture takes at the peak, besides the picture itself."""
    peak = 0
    for _ in range(2):  # the first call imports what the tracking of tensors needs
        tracemalloc.start()
        try:
            peak = peak_memory(lambda: metric.process({}, [sample]), torch.device("cpu")) + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return peak


def metrics_table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| metric | time of a picture | relative | memory at the peak |", "|---|---|---|---|"]
    for name, row in result["rows"].items():
        cells = (name, f"{row['seconds'] * 1e3:.1f} ms", f"{row['ratio']:.1f}x", f"{row['bytes'] / 2**20:.1f} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Pictures of {result['size'][0]}x{result['size'][1]}, {result['classes']} classes, cpu ({result['threads']} threads), "
        f"median of {result['rounds']}; the scores differ by at most {result['gap']:.0e}, and mmseg rounds to 1e-4.",
    ]
    return "\n".join(lines)
