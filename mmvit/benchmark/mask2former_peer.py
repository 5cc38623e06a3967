"""`transformers`' Mask2Former of the size of one of ours, and its weights under our names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mmvit.architectures import MaskSegmenter
from mmvit.backbones.swin import Swin
from mmvit.errors import UserError


def create_peer(model: MaskSegmenter) -> Any | None:
    """A Mask2Former of `transformers` with the sizes of `model`, whose backbone is a Swin; None without transformers.

    Its weights are seeded by their names, such that all queries differ.
    """
    try:
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    except ImportError:
        return None
    from mmvit.check_golden import fill_values

    if not isinstance(model.backbone, Swin):
        raise UserError(f"transformers' Mask2Former has no backbone {model.backbone_name!r}. Compare with a Swin.")
    peer = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=SwinConfig(**_swin(model)), **_rest(model)))
    state = {k: torch.from_numpy(fill_values(k, v.shape)).to(v.dtype) for k, v in peer.state_dict().items()}
    peer.load_state_dict(state)
    return peer.eval()


def _swin(model: MaskSegmenter) -> dict[str, Any]:
    swin = model.backbone
    attention = [stage.blocks[0].attn for stage in swin.layers]
    mlp = swin.layers[0].blocks[0].mlp
    return dict(
        embed_dim=swin.feature_info[0][0],
        depths=list(swin.depths),
        num_heads=[part.num_heads for part in attention],
        window_size=attention[0].window[0],
        mlp_ratio=mlp.fc1.out_features / mlp.fc1.in_features,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _rest(model: MaskSegmenter) -> dict[str, Any]:
    neck, head = model.neck, model.head
    encoder = neck.encoder.layers[0]
    return dict(
        num_labels=model.num_classes,
        feature_size=neck.encoder.dim,
        mask_feature_size=neck.mask_dim,
        encoder_feedforward_dim=encoder.linear1.out_features,
        encoder_layers=len(neck.encoder.layers),
        hidden_dim=head.query_feat.embedding_dim,
        dim_feedforward=head.layers[0].linear1.out_features,
        decoder_layers=len(head.layers) + 1,
        num_attention_heads=head.layers[0].cross_attn.num_heads,
        num_queries=head.num_queries,
    )


#: Applied in order.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.pixel_level_module\.encoder\.swin\.", "backbone."),
        (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)\.", lambda m: f"backbone.norm{int(m[1]) - 1}."),
        (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
        (r"^backbone\.embeddings\.norm\.", "backbone.patch_embed.norm."),
        (r"^backbone\.encoder\.layers\.", "backbone.layers."),
        (r"\.attention\.relative_position_bias\.", ".attn."),
        (r"^(backbone.*)\.attention\.o_proj\.", r"\1.attn.proj."),
        (r"^(backbone.*)\.attention\.qkv\.", r"\1.attn.qkv."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"^model\.pixel_level_module\.decoder\.(level_embed)", r"neck.encoder.\1"),
        (r"^model\.pixel_level_module\.decoder\.input_projections\.", "neck.encoder.input_proj."),
        (r"^model\.pixel_level_module\.decoder\.mask_projection\.", "neck.mask_features."),
        (r"^model\.pixel_level_module\.decoder\.(adapter_1|layer_1)\.0\.", r"neck.\1.conv."),
        (r"^model\.pixel_level_module\.decoder\.(adapter_1|layer_1)\.1\.", r"neck.\1.norm."),
        (r"^model\.pixel_level_module\.decoder\.", "neck."),
        (r"^(neck.*)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"^(neck.*)\.final_layer_norm\.", r"\1.norm2."),
        (r"^((?:neck|model).*)\.fc([12])\.", r"\1.linear\2."),
        (r"^class_predictor\.", "head.class_embed."),
        (r"^model\.transformer_module\.queries_embedder\.", "head.query_embed."),
        (r"^model\.transformer_module\.queries_features\.", "head.query_feat."),
        (r"^model\.transformer_module\.level_embed\.", "head.level_embed."),
        (r"^model\.transformer_module\.decoder\.layernorm\.", "head.decoder_norm."),
        (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"head.mask_embed.layers.\1."),
        (r"^model\.transformer_module\.decoder\.", "head."),
        (r"^(head.*)\.(self|cross)_attn_layer_norm\.", r"\1.\2_norm."),
        (r"^(head.*)\.final_layer_norm\.", r"\1.ffn_norm."),
        (r"^(head.*\.self_attn)\.qkv\.", r"\1.in_proj_"),
    )
]
_PROJECTIONS = re.compile(r"^(.*)\.q_proj\.(weight|bias)$")


def with_our_names(state_dict: dict[str, Tensor], model: MaskSegmenter) -> dict[str, Tensor]:
    """The state dict of `create_peer(model)` with the names of `model`.

    Raises:
        UserError: names of another version of transformers.
    """
    state = {}
    for key, value in state_dict.items():
        found = _PROJECTIONS.match(key)
        if found:
            parts = [state_dict[f"{found[1]}.{part}_proj.{found[2]}"] for part in "qkv"]
            key, value = f"{found[1]}.qkv.{found[2]}", torch.cat(parts)
        if re.search(r"\.[kv]_proj\.", key) or key.startswith(
            ("criterion.", "model.pixel_level_module.encoder.swin.layernorm.")
        ):
            continue
        for pattern, replacement in _RENAMES:
            key = pattern.sub(replacement, key)
        state[key] = value
    own = model.state_dict()
    wrong = sorted(state.keys() ^ own.keys())
    if wrong:
        raise UserError(
            f"transformers' Mask2Former has other names than known ({len(wrong)} do not fit, such as {wrong[0]!r}). "
            "The comparison was written for transformers 5.23: pip install transformers==5.23.0"
        )
    return state
