"""Necks: what joins a backbone's levels."""

from .hybrid_encoder import HybridEncoder

__all__ = ["HybridEncoder"]
