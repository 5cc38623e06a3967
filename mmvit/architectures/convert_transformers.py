"""Names of `transformers`' RT-DETR -> names of the official code."""

from __future__ import annotations

import re

import torch
from torch import Tensor

#: Applied in order to the name behind ``model.``.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.model\.embedder\.embedder\.(\d)\.", lambda m: f"backbone.conv1.conv1_{int(m[1]) + 1}."),
        (r"^backbone\.model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"backbone.res_layers.\1.blocks.\2."),
        (r"^(backbone.*)\.layer\.(\d)\.", lambda m: f"{m[1]}.branch2{'abc'[int(m[2])]}."),
        (r"^(backbone.*)\.shortcut\.1\.", r"\1.short.conv."),
        (r"^(backbone.*)\.shortcut\.", r"\1.short."),
        (r"^(backbone.*)\.convolution\.", r"\1.conv."),
        (r"^(backbone.*)\.normalization\.", r"\1.norm."),
        (r"^encoder_input_proj\.", "encoder.input_proj."),
        (r"^encoder\.aifi\.", "encoder.encoder."),
        (r"^(encoder\.encoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"^(encoder\.encoder.*)\.final_layer_norm\.", r"\1.norm2."),
        (r"^decoder_input_proj\.(\d+)\.0\.", r"decoder.input_proj.\1.conv."),
        (r"^decoder_input_proj\.(\d+)\.1\.", r"decoder.input_proj.\1.norm."),
        (r"^decoder\.layers\.", "decoder.decoder.layers."),
        (r"^(decoder\.decoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"^(decoder\.decoder.*)\.encoder_attn_layer_norm\.", r"\1.norm2."),
        (r"^(decoder\.decoder.*)\.final_layer_norm\.", r"\1.norm3."),
        (r"\.encoder_attn\.", ".cross_attn."),
        (r"\.(?:mlp\.)?fc([12])\.", r".linear\1."),
        (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
        (r"^decoder\.class_embed\.", "decoder.dec_score_head."),
        (r"^decoder\.bbox_embed\.", "decoder.dec_bbox_head."),
        (r"^(enc_output|enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
    )
]


def from_transformers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of ``RTDetrForObjectDetection`` (or V2) to the official one; query, key and value are packed.

    Its top-level ``class_embed`` and ``bbox_embed`` are the decoder's own once more, and dropped.
    """
    out: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        if not key.startswith("model.") or key.endswith("n_points_scale"):
            continue
        name = key.removeprefix("model.")
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        part = re.fullmatch(r"(.*self_attn)\.([qkv])_proj\.(weight|bias)", name)
        if part:
            packed.setdefault(f"{part[1]}.in_proj_{part[3]}", {})[part[2]] = value
        else:
            out[name] = value
    return out | {name: torch.cat([parts[p] for p in "qkv"]) for name, parts in packed.items()}
