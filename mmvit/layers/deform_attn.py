"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) around reference boxes or points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvit.ops.deform_attn import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Each query samples `num_points[l]` points on every level l around its reference, in normalised map coordinates.

    Around a box: location = box centre + offset / num_points[l] * box size * 0.5. Around a point: point + offset / (w_l, h_l).

    Args:
        dim: channels of queries and memory.
        num_heads: attention heads.
        num_points: points on each level.
        method: ``bilinear`` sampling or RT-DETRv2's ``discrete`` one (nearest pixel; the offsets are frozen).
        ratio: channels of the sampled values over `dim`.
    """

    def __init__(self, dim: int, num_heads: int, num_points: Sequence[int], method: str = "bilinear", ratio: float = 1.0):
        super().__init__()
        self.num_heads, self.num_points, self.method = num_heads, list(num_points), method
        total = sum(num_points)
        self.sampling_offsets = nn.Linear(dim, num_heads * total * 2)
        self.attention_weights = nn.Linear(dim, num_heads * total)
        self.value_proj = nn.Linear(dim, int(dim * ratio))
        self.output_proj = nn.Linear(int(dim * ratio), dim)
        scale = torch.tensor([1 / n for n in num_points for _ in range(n)])
        self.register_buffer("point_scale", scale[:, None], persistent=False)  # (total, 1)
        self.reset_parameters()
        if method == "discrete":
            self.sampling_offsets.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Offsets point in one direction per head, growing with the point's number; uniform attention."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        steps = torch.cat([torch.arange(1, n + 1) for n in self.num_points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * steps[None, :, None]).flatten())
        for weight in (
            self.sampling_offsets.weight,
            self.attention_weights.weight,
            self.attention_weights.bias,
            self.value_proj.bias,
            self.output_proj.bias,
        ):
            nn.init.zeros_(weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def _scales(self, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """What an offset of 1 means: (B, Q, 1, points, 2) or a shape that broadcasts to it."""
        if reference.shape[-1] == 4:
            return self.point_scale.to(reference.dtype) * reference[:, :, None, None, 2:] * 0.5
        sides = [(1 / w, 1 / h) for (h, w), points in zip(shapes, self.num_points, strict=True) for _ in range(points)]
        return reference.new_tensor(sides)

    def forward(self, query: Tensor, boxes: Tensor, memory: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """query (B, Q, C), boxes (B, Q, 4) normalised cxcywh or points (B, Q, 2) xy, memory (B, sum h*w, C) -> (B, Q, C)."""
        batch, length = query.shape[:2]
        value = self.value_proj(memory).view(batch, -1, self.num_heads, self.value_proj.out_features // self.num_heads)
        offsets = self.sampling_offsets(query).view(batch, length, self.num_heads, -1, 2)
        weights = self.attention_weights(query).view(batch, length, self.num_heads, -1).softmax(-1)
        # (B, Q, heads, points, 2)
        locations = boxes[:, :, None, None, :2] + offsets.to(boxes.dtype) * self._scales(boxes, shapes)
        out = ms_deform_attn(
            value.to(boxes.dtype),
            list(shapes),
            locations,
            weights.to(boxes.dtype),
            num_points=self.num_points,
            method=self.method,
        )  # in the boxes' precision: half precision would move points by pixels
        return self.output_proj(out.to(query.dtype))
