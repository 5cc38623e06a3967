"""RT-DETR's query selection and decoder (arXiv 2304.08069, 2407.17140)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.layers.attention import SelfAttention
from mmvit.layers.conv import ConvNorm
from mmvit.layers.deform_attn import MSDeformAttn
from mmvit.layers.mlp import MLP
from mmvit.losses import centre_to_corners, inverse_sigmoid
from mmvit.matching import Denoising, MatchCost, Target, TorchDraws, make_denoising
from mmvit.registry import MODELS

from .detr_criterion import DETRCriterion, Prediction


def make_anchors(shapes: Sequence[tuple[int, int]], *, device=None, dtype=None) -> tuple[Tensor, Tensor]:
    """Encoder proposals of maps (h, w), fine to coarse.

    Returns:
        logits (1, sum h*w, 4) of centre boxes at the pixel centres, of side 0.05 * 2^level; +inf where invalid,
        valid (1, sum h*w, 1) bool: all four values strictly inside (0.01, 0.99).
    """
    levels = []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        centre = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).to(dtype or torch.get_default_dtype())
        levels.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], -1).flatten(0, 1))
    anchors = torch.cat(levels)[None]
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
    return torch.logit(anchors).masked_fill(~valid, math.inf), valid


def select_detections(logits: Tensor, boxes: Tensor, sizes: Tensor, top: int = 300) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The `top` best (query, class) pairs of each image; a query may appear several times, no NMS, no clipping.

    Args:
        logits: (B, Q, C). boxes: (B, Q, 4) normalised centre boxes. sizes: (B, 2) width and height in pixels.

    Returns:
        per image: corner boxes (k, 4) in pixels, scores (k,) descending, labels (k,), k = min(top, Q * C).
    """
    scores, index = logits.sigmoid().flatten(1).topk(min(top, logits[0].numel()))
    corners = centre_to_corners(boxes) * sizes.repeat(1, 2)[:, None]
    picked = corners.gather(1, (index // logits.shape[-1])[..., None].expand(-1, -1, 4))
    return list(zip(picked, scores, index % logits.shape[-1]))


class DecoderLayer(nn.Module):
    """Post-norm: self-attention, deformable cross-attention, ReLU feed-forward. (B, Q, C) -> (B, Q, C)."""

    def __init__(self, dim: int, num_heads: int, feedforward: int, num_points: Sequence[int], sampling: str):
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.cross_attn = MSDeformAttn(dim, num_heads, num_points, sampling)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, pos: Tensor, boxes: Tensor, memory: Tensor, shapes: Sequence[tuple[int, int]], mask: Tensor | None
    ) -> Tensor:
        x = self.norm1(x + self.self_attn(x, pos, mask))
        x = self.norm2(x + self.cross_attn(x + pos, boxes, memory, shapes))
        x = x + self.linear2(F.relu(self.linear1(x)))
        if x.dtype == torch.float16:
            x = x.clamp(-65504, 65504)
        return self.norm3(x)


class ProjectNorm(nn.Module):
    """Linear layer, then layer norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


CACHED_SIZES = 16  # input sizes whose anchors are kept


@dataclass
class DecoderOutput:
    """Predictions: logits (B, Q, C) and normalised centre boxes (B, Q, 4).

    Attributes:
        layers: of the decoder layers that were asked for, last one last.
        proposals: of the selected encoder tokens, best first.
        tokens: (B, Q) flat indices of these tokens (levels fine to coarse, row-major).
    """

    layers: list[Prediction]
    proposals: Prediction
    tokens: Tensor


@MODELS.register_module()
class RTDETRHead(nn.Module):
    """Selects the best encoder tokens as queries and refines them layer by layer.

    Args:
        in_channels: channels of the neck's levels, fine to coarse (each level half the sides of the one before).
        num_classes: object classes.
        hidden_dim, num_heads, feedforward: widths of the decoder.
        num_layers: decoder layers. eval_idx: the last one used in evaluation (negative counts from the end).
        num_points: sampled points on each level.
        sampling: ``bilinear`` or RT-DETRv2's ``discrete``.
        num_queries: object queries.
        query_select: ``default`` (best class of each token), ``one2many`` (token-class pairs) or ``agnostic`` (objectness).
        num_denoising, label_noise, box_noise: contrastive denoising, see `make_denoising`.
        version: 1 or 2, for what the two releases initialise or treat differently.
        criterion: arguments of `DETRCriterion`; `cost` in it those of `MatchCost`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 80,
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward: int = 1024,
        num_layers: int = 6,
        eval_idx: int = -1,
        num_points: Sequence[int] | None = None,
        sampling: str = "bilinear",
        num_queries: int = 300,
        query_select: str = "default",
        num_denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        version: int = 1,
        criterion: dict | None = None,
    ):
        super().__init__()
        if query_select not in ("default", "one2many", "agnostic"):
            raise UserError(f"RTDETRHead: query_select {query_select!r} is not 'default', 'one2many' or 'agnostic'.")
        num_points = num_points or [4] * len(in_channels)
        self.num_classes, self.num_queries, self.query_select, self.version = num_classes, num_queries, query_select, version
        self.num_denoising, self.label_noise, self.box_noise = num_denoising, label_noise, box_noise
        criterion = dict(criterion or {})
        self.criterion = DETRCriterion(**{**criterion, "cost": MatchCost(**criterion.get("cost", {}))})
        self.input_proj = nn.ModuleList(ConvNorm(channels, hidden_dim, 1) for channels in in_channels)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_dim, num_heads, feedforward, num_points, sampling) for _ in range(num_layers)
        )
        self.denoising_class_embed = nn.Embedding(num_classes + 1, hidden_dim, padding_idx=num_classes)
        self.query_pos_head = MLP(4, 2 * hidden_dim, hidden_dim, 2)
        self.enc_output = ProjectNorm(hidden_dim)
        self.enc_score_head = nn.Linear(hidden_dim, 1 if query_select == "agnostic" else num_classes)
        self.enc_bbox_head = MLP(hidden_dim, hidden_dim, 4, 3)
        self.dec_score_head = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(num_layers))
        self.dec_bbox_head = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, 3) for _ in range(num_layers))
        self.set_eval_layers(eval_idx % num_layers + 1)
        self._anchors: dict[tuple, tuple[Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Prior probability 0.01 for all classes, boxes start at their reference."""
        for linear in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(linear.bias, -math.log(99))
        for mlp in (self.enc_bbox_head, *self.dec_bbox_head):
            nn.init.zeros_(mlp.layers[-1].weight)
            nn.init.zeros_(mlp.layers[-1].bias)
        for linear in (self.enc_output.proj, *self.query_pos_head.layers):
            nn.init.xavier_uniform_(linear.weight)
        if self.version == 2:
            for proj in self.input_proj:
                nn.init.xavier_uniform_(proj.conv.weight)
            for layer in self.layers:
                nn.init.xavier_uniform_(layer.linear1.weight)
                nn.init.xavier_uniform_(layer.linear2.weight)

    def set_eval_layers(self, count: int) -> None:
        """Evaluate with the first `count` decoder layers: fewer are faster, no retraining is needed."""
        if not 1 <= count <= len(self.layers):
            raise UserError(f"This decoder has {len(self.layers)} layers; evaluating with {count} is not possible.")
        self.eval_layers = count

    def anchors(self, shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
        """`make_anchors`, made once per input size."""
        dtype = torch.promote_types(like.dtype, torch.float32)  # boxes are never half precision
        key = (*map(tuple, shapes), like.device, dtype)
        if key not in self._anchors:
            if len(self._anchors) == CACHED_SIZES:
                self._anchors.clear()
            self._anchors[key] = make_anchors(shapes, device=like.device, dtype=dtype)
        return self._anchors[key]

    def flatten(self, features: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Maps (B, C_i, h, w) -> memory (B, sum h*w, hidden), [(h, w), ...]."""
        maps = [proj(x) for proj, x in zip(self.input_proj, features)]
        return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), [tuple(m.shape[-2:]) for m in maps]

    def select(self, memory: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Prediction, Tensor]:
        """The best tokens -> content (B, Q, C), box logits (B, Q, 4), proposals, token indices (B, Q)."""
        anchors, valid = self.anchors(shapes, memory)
        tokens = self.enc_output(memory * valid.to(memory.dtype))
        logits = self.enc_score_head(tokens)
        count = min(self.num_queries, tokens.shape[1])
        if self.query_select == "one2many":
            index = logits.flatten(1).topk(count).indices // logits.shape[-1]
        else:
            index = torch.topk(logits.amax(-1), count).indices
        rows = index[..., None]
        content = tokens.gather(1, rows.expand(-1, -1, tokens.shape[-1]))
        box_logits = (self.enc_bbox_head(content) + anchors.expand(len(memory), -1, -1).gather(1, rows.expand(-1, -1, 4))).to(
            anchors.dtype
        )
        logits = logits.gather(1, rows.expand(-1, -1, logits.shape[-1]))
        return content, box_logits, (logits, box_logits.sigmoid()), index

    def forward(
        self, features: Sequence[Tensor], denoising: Denoising | None = None, all_layers: bool = False
    ) -> DecoderOutput:
        """Neck levels -> predictions: of every layer in training or with `all_layers`, else of the last evaluated one only."""
        memory, shapes = self.flatten(features)
        content, box_logits, proposals, index = self.select(memory, shapes)
        content, box_logits, mask = content.detach(), box_logits.detach(), None
        if denoising is not None:
            content = torch.cat([self.denoising_class_embed(denoising.labels).to(content.dtype), content], 1)
            box_logits = torch.cat([denoising.box_logits.to(box_logits.dtype), box_logits], 1)
            mask = denoising.mask
        last = len(self.layers) if self.training else self.eval_layers
        layers = self.refine(content, box_logits, memory, shapes, mask, last, self.training or all_layers)
        return DecoderOutput(layers, proposals, index)

    def refine(
        self,
        x: Tensor,
        box_logits: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        mask: Tensor | None,
        last: int,
        keep_all: bool,
    ) -> list[Prediction]:
        """Run the first `last` decoder layers from reference `box_logits` (B, Q, 4)."""
        reference = box_logits.sigmoid()
        previous = None  # the layer before's boxes, with their gradient ("look forward twice")
        predictions = []
        for i, layer in enumerate(self.layers[:last]):
            x = layer(x, self.query_pos_head(reference.to(x.dtype)), reference, memory, shapes, mask)
            delta = self.dec_bbox_head[i](x).to(reference.dtype)
            boxes = (delta + inverse_sigmoid(reference)).sigmoid()
            if keep_all or i == last - 1:
                looked = (delta + inverse_sigmoid(previous)).sigmoid() if self.training and previous is not None else boxes
                predictions.append((self.dec_score_head[i](x), looked))
            previous, reference = boxes, boxes.detach()
        return predictions

    def loss(self, features: Sequence[Tensor], targets: list[Target], image_ids: Sequence) -> dict[str, Tensor]:
        """Weighted losses of all layers; raises `NonFiniteError`."""
        draws = TorchDraws(features[0].device)
        queries = min(self.num_queries, sum(f.shape[-2] * f.shape[-1] for f in features))
        denoising = make_denoising(
            targets,
            self.num_classes,
            queries,
            self.num_denoising,
            self.label_noise,
            self.box_noise,
            draws=draws,
            empty_group=self.version == 2,
        )
        output = self(features, denoising)
        split = 0 if denoising is None else denoising.labels.shape[1]
        with torch.autocast(features[0].device.type, enabled=False):
            losses = self.criterion(
                [(logits[:, split:], boxes[:, split:]) for logits, boxes in output.layers],
                targets,
                image_ids,
                encoder=output.proposals,
                denoising=denoising,
                denoising_layers=[(logits[:, :split], boxes[:, :split]) for logits, boxes in output.layers]
                if denoising
                else (),
            )
        if denoising is None:  # every parameter takes part in every step, as distributed training wants it
            losses["loss_vfl"] = losses["loss_vfl"] + 0 * self.denoising_class_embed.weight.sum()
        return losses

    @classmethod
    def convert(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names (v1 or v2) of the decoder; buffers that are computed here are dropped."""
        out = {}
        for key, value in state_dict.items():
            if key in ("anchors", "valid_mask") or key.endswith("num_points_scale"):
                continue
            parts = key.split(".")
            if parts[0] == "decoder":
                parts = parts[1:]
            if parts[0] == "enc_output" and parts[1] in "01":
                parts[1] = ("proj", "norm")[int(parts[1])]
            out[".".join(parts)] = value
        return out
