"""MiT, SegFormer's encoder.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers" (arXiv 2105.15203).
"""

from __future__ import annotations

from mmvit.registry import MODELS

from .pvt import PVTv2


@MODELS.register_module()
class MiT(PVTv2):
    """Mix Transformer: the pyramid of `PVTv2` with MLP ratio 4 and one eps for all norms. Sides round up.

    The eps is mmsegmentation's; the first code had 1e-5 in patch embeddings and on the reduced maps.
    """

    family = "mit"
    arxiv = "2105.15203"
    inner_eps = 1e-6
    variants = {
        "b0": dict(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2), mlp_ratios=(4, 4, 4, 4)),
        "b1": dict(dims=(64, 128, 320, 512), depths=(2, 2, 2, 2), mlp_ratios=(4, 4, 4, 4)),
        "b2": dict(dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), mlp_ratios=(4, 4, 4, 4)),
        "b3": dict(dims=(64, 128, 320, 512), depths=(3, 4, 18, 3), mlp_ratios=(4, 4, 4, 4)),
        "b4": dict(dims=(64, 128, 320, 512), depths=(3, 8, 27, 3), mlp_ratios=(4, 4, 4, 4)),
        "b5": dict(dims=(64, 128, 320, 512), depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
        "debug": dict(dims=(8, 16, 20, 32), depths=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 2)),
    }
