"""Mask classifiers: Mask2Former, PEM and kMaX-DeepLab on the same image, Mask2Former against transformers', memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmvit.architectures import MaskSegmenter
from mmvit.data.structures import DataSample
from mmvit.engine.cost import count_flops, latencies, peak_memory

from .mask2former_peer import create_peer, with_our_names
from .resident import resident_growth

#: Name in the table -> method; the first is what the others are compared with.
METHODS = {"Mask2Former": "mask2former", "PEM": "pem", "kMaX-DeepLab": "kmax"}
PARTS = ("backbone", "pixel decoder", "decoder")
CLASSES = 133  # COCO panoptic
LARGE, LARGE_QUERIES, LARGE_CLASSES, THINGS = (1024, 2048), 200, 19, tuple(range(11, 19))  # Cityscapes


def benchmark_masks(
    size: int = 640,
    batch: int = 1,
    rounds: int = 10,
    device: str = "cpu",
    backbone: str = "resnet_50",
    peer_backbone: str = "swin_tiny",
    large: tuple[int, int] = LARGE,
) -> dict[str, Any]:
    """The methods on equal input, Mask2Former beside transformers' with the same weights, and the memory of `predict`.

    Models and images are channels-last. Those that are compared take turns, so that all meet the same machine.

    Args:
        size: side of the images; for the memory it is `large` (height, width).
        backbone: of the methods.
        peer_backbone: of the comparison with transformers, whose Mask2Former has Swin.

    Returns:
        settings and ``methods``, ``peer`` (None without transformers), ``memory``: see `methods`, `against_peer`, `memory`.
    """
    where = torch.device(device)
    with torch.inference_mode():
        return dict(
            size=size,
            batch=batch,
            device=device,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            rounds=rounds,
            classes=CLASSES,
            backbone=backbone,
            methods=methods(size, batch, rounds, where, backbone),
            peer=against_peer(size, batch, rounds, where, peer_backbone),
            large=list(large),
            memory=memory(large, where, backbone),
        )


def methods(size: int, batch: int, rounds: int, device: torch.device, backbone: str) -> list[dict[str, Any]]:
    """The networks of `METHODS`, as built and in deploy mode (norms merged into convolutions).

    Returns:
        rows of ``method``, ``form`` (eager or deploy), ``queries``, ``params``, ``flops`` (two per multiply-add) and
        ``seconds`` (medians): each a dict over ``network``, ``backbone``, ``pixel decoder``, ``decoder`` and ``both decoders``
        (but ``params`` of the eager network only); ``params_ratio``, ``flops_ratio``, ``seconds_ratio`` to the first method in
        the same form.
    """
    images = _images(batch, (size, size), device)
    models = {}
    for name, arch in METHODS.items():
        for form in ("eager", "deploy"):
            models[name, form] = _model(arch, backbone, device, deployed=form == "deploy")
    times = {key: _part_times(model, images) for key, model in models.items()}  # a first turn, which warms up
    times = {key: {part: [] for part in parts} for key, parts in times.items()}
    for _ in range(rounds):
        for key, model in models.items():
            for part, value in _part_times(model, images).items():
                times[key][part].append(value)
    rows = []
    for (name, form), model in models.items():
        flops, params = _part_flops(model, images), {part: _count(module) for part, module in _modules(model).items()}
        seconds = {part: statistics.median(values) for part, values in times[name, form].items()}
        row = dict(method=name, form=form, queries=model.head.num_queries, params=_sums(params), flops=_sums(flops))
        rows.append(row | dict(seconds=seconds))
    for row in rows:
        first = next(r for r in rows if r["form"] == row["form"])
        for figure in ("params", "flops", "seconds"):
            row[f"{figure}_ratio"] = {part: value / first[figure][part] for part, value in row[figure].items()}
    return rows


def _model(arch: str, backbone: str, device: torch.device, deployed: bool = False, **settings: Any) -> MaskSegmenter:
    torch.manual_seed(0)
    model = MaskSegmenter(arch, backbone=backbone, auxiliary_head=False, **{"num_classes": CLASSES, **settings})
    model = model.eval().requires_grad_(False).to(device)
    return model.deploy() if deployed else model.to(memory_format=torch.channels_last)


def _images(batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    return torch.rand(batch, 3, *size, device=device).contiguous(memory_format=torch.channels_last)


def _modules(model: MaskSegmenter) -> dict[str, torch.nn.Module]:
    return dict(zip(PARTS, (model.backbone, model.neck, model.head)))


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _sums(parts: dict[str, Any]) -> dict[str, Any]:
    """Figures of `PARTS`, and the sums that matter."""
    return {"network": sum(parts.values()), **parts, "both decoders": parts["pixel decoder"] + parts["decoder"]}


def _chain(model: MaskSegmenter, images: Tensor) -> list[Callable[[], Any]]:
    """The calls of `PARTS`, each on what the one before it gave."""
    found: list[Any] = [images]

    def run(call: Callable[[], Any]) -> None:
        found.append(call())

    return [
        lambda: run(lambda: model.backbone(found[0])),
        lambda: run(lambda: model.neck(found[1])),
        lambda: run(lambda: model.head(*found[2], all_layers=False)),
    ]


def _part_times(model: MaskSegmenter, images: Tensor) -> dict[str, float]:
    """Seconds of one forward pass and of its parts."""
    times = {}
    for part, call in zip(PARTS, _chain(model, images)):
        start = time.perf_counter()
        call()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        times[part] = time.perf_counter() - start
    return _sums(times)


def _part_flops(model: MaskSegmenter, images: Tensor) -> dict[str, int]:
    return {part: count_flops(call) for part, call in zip(PARTS, _chain(model, images))}


def against_peer(size: int, batch: int, rounds: int, device: torch.device, backbone: str) -> dict[str, Any] | None:
    """Our Mask2Former and transformers' with the same random weights; None where transformers is not installed.

    Returns:
        ``backbone``, ``gap`` (largest difference of class and of mask logits to the peer, over the largest such logit) and
        ``rows``: name -> ``seconds`` (median), ``bytes`` at the peak, ``ratio`` of the seconds to the peer's.
    """
    ours = _model("mask2former", backbone, device)
    peer = create_peer(ours)
    if peer is None:
        return None
    ours.load_state_dict(with_our_names(peer.state_dict(), ours))
    deployed = _model("mask2former", backbone, device)
    deployed.load_state_dict(ours.state_dict())
    deployed.deploy()
    peer.to(device)
    images = _images(batch, (size, size), device)
    plain = images.contiguous()
    runs: dict[str, Callable[[], Any]] = {
        "transformers": lambda: peer(pixel_values=plain),
        "mmvit, eager": lambda: ours(images),
        "mmvit, deploy": lambda: deployed(images),
    }
    wanted = peer(pixel_values=plain)
    logits = wanted.class_queries_logits, wanted.masks_queries_logits
    gap = {name: dict(zip(("classes", "masks"), (_gap(a, b) for a, b in zip(runs[name](), logits)))) for name in list(runs)[1:]}
    seconds = latencies(runs, device, rounds)
    rows = {
        name: dict(seconds=seconds[name], ratio=seconds[name] / seconds["transformers"], bytes=peak_memory(run, device))
        for name, run in runs.items()
    }
    return dict(backbone=backbone, gap=gap, rows=rows)


def _gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def memory(
    size: tuple[int, int], device: torch.device, backbone: str, queries: int = LARGE_QUERIES, images: int = 2
) -> list[dict[str, Any]]:
    """What `predict` takes, from image to panoptic, instance and semantic results, above the model and the image.

    Returns:
        rows of ``method``, ``queries``, ``bytes`` of tensors at the peak of one image, ``bytes_of_many`` for `images` images
        one after the other, and ``resident``: how far the process grew over one image (NumPy arrays and the libraries' work
        space included; None where the system does not tell).
    """
    rows = []
    for name, arch in METHODS.items():
        head = dict(num_queries=queries)
        model = _model(arch, backbone, device, deployed=True, num_classes=LARGE_CLASSES, things=THINGS, head=head)
        _confident(model)
        image = _images(1, size, device)

        def one(model=model, image=image) -> None:
            model.predict(image, [DataSample(metainfo=dict(ori_shape=size, img_shape=size))])

        first: list[int] = []
        resident = resident_growth(lambda one=one, first=first: first.append(peak_memory(one, device)))
        many = peak_memory(lambda one=one: [one() for _ in range(images)], device)
        rows.append(dict(method=name, queries=queries, images=images, bytes=first[0], bytes_of_many=many, resident=resident))
    return rows


def _confident(model: MaskSegmenter) -> None:
    """Make every query sure of a class, in turn, so that post-processing has work with all of them."""
    parts = [m for m in model.head.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == LARGE_CLASSES + 1]
    for part in parts:
        part.weight.mul_(40)


def masks_tables(result: dict[str, Any]) -> str:
    """The result in Markdown; ratios stand in brackets."""
    machine = f"batch {result['batch']}, {result['device']} ({result['threads']} threads), PyTorch {result['torch']}"
    turns = f"median of {result['rounds']} turns"
    lines = [_methods_table(result["methods"]), ""]
    lines.append(
        f"`{result['backbone']}`, {result['classes']} classes, {result['size']}x{result['size']} input, {machine}, {turns}; in "
        "brackets relative to Mask2Former in the same form; two FLOPs per multiply-add; deploy: norms merged."
    )
    if result["peer"] is None:
        lines += ["", "No comparison with transformers: it is not installed (pip install -e .[benchmark])."]
    else:
        lines += ["", _peer_table(result["peer"]), ""]
        lines.append(f"Mask2Former with `{result['peer']['backbone']}` and equal weights, the same input, {turns}.")
    height, width = result["large"]
    lines += ["", _memory_table(result["memory"]), ""]
    lines.append(
        f"`predict` (network and all three results) on {height}x{width}, {LARGE_CLASSES} classes, deploy mode, above the model."
    )
    return "\n".join(lines)


def _methods_table(rows: list[dict[str, Any]]) -> str:
    parts = ("network", *PARTS, "both decoders")
    lines = [
        f"| method | queries | parameters | GFLOPs | {' | '.join(f'{part}' for part in parts)} | GFLOPs of decoder |",
        "|---|---|---|---|" + "---|" * (len(parts) + 1),
    ]
    for row in rows:
        times = [f"{row['seconds'][part] * 1e3:.0f} ms ({row['seconds_ratio'][part]:.2f}x)" for part in parts]
        cells = (
            f"{row['method']}, {row['form']}",
            str(row["queries"]),
            f"{row['params']['network'] / 1e6:.1f} M ({row['params_ratio']['network']:.2f}x)",
            f"{row['flops']['network'] / 1e9:.1f} ({row['flops_ratio']['network']:.2f}x)",
            *times,
            f"{row['flops']['decoder'] / 1e9:.1f} ({row['flops_ratio']['decoder']:.2f}x)",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _peer_table(peer: dict[str, Any]) -> str:
    lines = ["| Mask2Former of | latency | peak memory | difference of classes, masks |", "|---|---|---|---|"]
    for name, row in peer["rows"].items():
        gap = peer["gap"].get(name)
        cells = (
            name,
            f"{row['seconds'] * 1e3:.0f} ms ({row['ratio']:.2f}x)",
            f"{row['bytes'] / 2**20:.0f} MiB",
            "" if gap is None else f"{gap['classes']:.0e}, {gap['masks']:.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| method | queries | tensors, one image | {rows[0]['images']} images in turn | growth of the process |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        resident = "not told" if row["resident"] is None else f"{row['resident'] / 2**20:.0f} MiB"
        figures = (f"{row[key] / 2**20:.0f} MiB" for key in ("bytes", "bytes_of_many"))
        lines.append(f"| {row['method']} | {row['queries']} | {' | '.join(figures)} | {resident} |")
    return "\n".join(lines)
