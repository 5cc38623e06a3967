"""One model: parameters, FLOPs, latency and peak memory; eager, in deploy mode, and against a peer in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmvit.architectures import create_model
from mmvit.engine.cost import count_flops, latencies, peak_memory

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


def box_gap(boxes: Any, others: Any) -> float:
    """Largest L1 distance of a box to its nearest counterpart (near ties may change the order of the queries)."""
    return float(torch.cdist(boxes, others, p=1).amin(-1).max())


def benchmark_model(name: str, size: int = 640, batch: int = 1, rounds: int = 10, device: str = "cpu") -> dict[str, Any]:
    """Measure model `name` at `size` x `size`.

    Returns:
        settings, ``params``, ``flops`` of one batch, ``gap`` (largest difference between eager and deployed boxes, and to the
        peer, in normalised coordinates), and ``rows``: name -> seconds, bytes, and seconds relative to the first row.
    """
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
