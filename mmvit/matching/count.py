"""The number of objects that losses are divided by."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_object_count(objects: int, device: torch.device) -> Tensor:
    """max(1, objects per process, averaged over the processes). Every process has to call it."""
    count = torch.tensor(float(objects), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count /= dist.get_world_size()
    return count.clamp(min=1)
