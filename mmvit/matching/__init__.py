"""Assignment of predictions to objects, and denoising queries that need none."""

from .count import mean_object_count
from .denoising import Denoising, Draws, TorchDraws, make_denoising
from .hungarian import Match, MatchCost, Target, hungarian_match

__all__ = [
    "Denoising",
    "Draws",
    "Match",
    "MatchCost",
    "Target",
    "TorchDraws",
    "hungarian_match",
    "make_denoising",
    "mean_object_count",
]
