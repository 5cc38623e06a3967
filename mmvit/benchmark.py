"""Cost of a model: parameters, FLOPs, latency and peak memory; eager, in deploy mode, and against a peer in the same run."""

from __future__ import annotations

import argparse
import json
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmvit.errors import UserError

#: `transformers` settings that differ from its defaults (which are those of rtdetr_r50), by our model name.
PEERS: dict[str, dict[str, Any]] = {
    "rtdetr_r18": dict(
        backbone=dict(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
    ),
    "rtdetr_r34": dict(
        backbone=dict(depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=4,
    ),
    "rtdetr_r50": {},
    "rtdetr_r101": dict(
        backbone=dict(depths=[3, 4, 23, 3]), encoder_hidden_dim=384, encoder_ffn_dim=2048, decoder_in_channels=[384, 384, 384]
    ),
}


def create_peer(name: str) -> Any | None:
    """`transformers`' RT-DETR of the same variant, 80 classes, random weights; None where it is not installed or has none."""
    try:
        from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
    except ImportError:
        return None
    if name not in PEERS:
        return None
    settings = dict(PEERS[name])
    if "backbone" in settings:
        settings["backbone_config"] = RTDetrResNetConfig(
            out_features=["stage2", "stage3", "stage4"], **settings.pop("backbone")
        )
    return RTDetrForObjectDetection(RTDetrConfig(num_labels=80, **settings)).eval()


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations (two per multiply-add) of the matrix products and convolutions of one call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(run: Callable[[], Any], device: Any) -> int:
    """Bytes of tensors that one call holds at its peak, above what was held before."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Tracker(TorchDispatchMode):
        """Adds the storages that operators return, and takes them off when they are freed."""

        held = peak = 0

        def __init__(self) -> None:
            super().__init__()
            self.seen = weakref.WeakSet()

        def free(self, size: int) -> None:
            self.held -= size

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                    storage = tensor.untyped_storage()
                    if storage not in self.seen:
                        self.seen.add(storage)
                        self.held += storage.nbytes()
                        weakref.finalize(storage, self.free, storage.nbytes())
            self.peak = max(self.peak, self.held)
            return result

    with Tracker() as tracker:
        run()
    return tracker.peak


def latencies(runs: dict[str, Callable[[], Any]], device: Any, rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that all meet the same machine."""
    import torch

    def once(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for run in runs.values():
        once(run)
        once(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(once(run))
    return {name: statistics.median(values) for name, values in times.items()}


def box_gap(boxes: Any, others: Any) -> float:
    """Largest L1 distance of a box to its nearest counterpart (near ties may change the order of the queries)."""
    import torch

    return float(torch.cdist(boxes, others, p=1).amin(-1).max())


def benchmark_model(name: str, size: int = 640, batch: int = 1, rounds: int = 10, device: str = "cpu") -> dict[str, Any]:
    """Measure model `name` at `size` x `size`.

    Returns:
        settings, ``params``, ``flops`` of one batch, ``gap`` (largest difference between eager and deployed boxes, and to the
        peer, in normalised coordinates), and ``rows``: name -> seconds, bytes, and seconds relative to the first row.
    """
    import torch

    from mmvit.architectures import create_model
    from mmvit.check_golden import fill_values

    where = torch.device(device)
    eager, deployed, peer = create_model(name).eval(), create_model(name).eval(), create_peer(name)
    source = eager if peer is None else peer  # weights for which every query differs, unlike fresh ones
    source.load_state_dict(
        {key: torch.from_numpy(fill_values(key, value.shape)).to(value.dtype) for key, value in source.state_dict().items()}
    )
    eager.load_state_dict(eager.convert(source.state_dict()))
    deployed.load_state_dict(eager.state_dict())
    deployed.deploy()
    images = torch.rand(batch, 3, size, size).to(where).contiguous(memory_format=torch.channels_last)
    models = {"mmvit, eager": eager.to(where, memory_format=torch.channels_last), "mmvit, deploy": deployed.to(where)}
    runs: dict[str, Callable[[], Any]] = {key: (lambda m=m: m(images)) for key, m in models.items()}
    if peer is not None:
        peer.to(where)
        plain = images.contiguous()
        runs = {"transformers": lambda: peer(pixel_values=plain), **runs}
    with torch.inference_mode():
        boxes = {key: (run().pred_boxes if key == "transformers" else run()[1]) for key, run in runs.items()}
        seconds = latencies(runs, where, rounds)
        memory = {key: peak_memory(run, where) for key, run in runs.items()}
        flops = count_flops(runs["mmvit, eager"])
    first = next(iter(runs))
    return dict(
        model=name,
        size=size,
        batch=batch,
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        params=sum(p.numel() for p in eager.parameters()),
        flops=flops,
        gap={key: box_gap(value, boxes["mmvit, eager"]) for key, value in boxes.items()},
        rows={key: dict(seconds=seconds[key], bytes=memory[key], ratio=seconds[key] / seconds[first]) for key in runs},
    )


def print_report(result: dict[str, Any]) -> None:
    """The result as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "",
        "latency",
        "ratio",
        "peak memory",
        "largest box difference",
        title=f"{result['model']}: {result['params'] / 1e6:.1f} M parameters, {result['flops'] / 1e9:.1f} GFLOPs at "
        f"{result['size']}x{result['size']}, batch {result['batch']}, {result['device']} ({result['threads']} threads)",
    )
    for name, row in result["rows"].items():
        table.add_row(
            name,
            f"{row['seconds'] * 1e3:.1f} ms",
            f"{row['ratio']:.2f}x",
            f"{row['bytes'] / 2**20:.0f} MiB",
            f"{result['gap'][name]:.1e}",
        )
    Console().print(table)
    if "transformers" not in result["rows"]:
        print("No comparison with transformers: it is not installed (pip install -e .[benchmark]) or has no such model.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mmvit benchmark``."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model names, such as rtdetr_r50")
    parser.add_argument("--size", type=int, default=640, help="side of the square input, a multiple of 32 (default 640)")
    parser.add_argument("--batch", type=int, default=1, help="images per call (default 1)")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each (default 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")


def run(args: argparse.Namespace) -> int:
    """Measure parameters, FLOPs, latency and memory of models, beside transformers' where it has the same."""
    if args.size < 32 or args.size % 32:
        raise UserError(f"--size {args.size} is not a positive multiple of 32.")
    if args.batch < 1 or args.rounds < 1:
        raise UserError("--batch and --rounds must be at least 1.")
    results = []
    for name in args.models:
        results.append(benchmark_model(name, args.size, args.batch, args.rounds, args.device))
        print_report(results[-1])
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    return 0
