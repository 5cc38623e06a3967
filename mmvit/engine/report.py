"""What the report of an evaluation says besides the scores: the identity of the config, the cost of the model, versions."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from torch import nn

import mmvit
from mmvit.engine.cost import count_flops, latencies
from mmvit.engine.pipelines import crop_of

#: where things lie, which is no part of what they are
_PLACES = ("ann_file", "png_dir", "img_dir", "mask_dir", "gt_dir", "split", "out_dir", "outfile")
_ROUNDS = 5


def hash_config(cfg: Config) -> str:
    """SHA-256 of what decides the scores of given weights on given data: model, test pipeline, classes and metric.

    Paths play no part, so that the hash is the same on another machine.
    """
    parts = dict(model=cfg.model, data=cfg.test_dataloader.dataset, metric=cfg.test_evaluator)
    plain = _without(Config(parts)._cfg_dict.to_dict(), {*_PLACES, "backbone_pretrained"})
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, (list, tuple)) else value


def input_size(cfg: Config) -> tuple[int, int]:
    """(height, width) for which the cost is told: the fixed input of a detector, the crop of a segmenter.

    (Segmenters are evaluated at the size of each picture; published costs are mostly for the crop.) Sides are rounded up to
    multiples of 32, as batches are padded, but for kMaX-DeepLab's, which are one more.
    """
    size = cfg.model.get("data_preprocessor", {}).get("size")
    if not size:
        steps = cfg.test_dataloader.dataset.pipeline
        size = next((step.size for step in steps if step.type == "Resize" and not step.get("keep_ratio")), None) or crop_of(cfg)
    size = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(side if side % 32 == 1 else -(-side // 32) * 32 for side in size)


@torch.no_grad()
def cost(model: nn.Module, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Parameters, FLOPs and median latency of a forward pass for one picture of `size`, and where it was measured."""
    was_training = model.training
    model.eval()
    image = torch.rand(1, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    flops = count_flops(lambda: model(image))
    seconds = latencies({"model": lambda: model(image)}, device, _ROUNDS)["model"]
    model.train(was_training)
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        latency=seconds,
        input_size=list(size),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
    )


def versions() -> dict[str, str]:
    """Versions of the software that an evaluation ran with."""
    ours = dict(mmvit=mmvit.__version__, python=platform.python_version())
    return ours | dict(torch=torch.__version__, mmengine=mmengine.__version__)
