"""Published checkpoints: an index of them, download with checks, and safe loading."""

from mmvit.weights.catalogue import Published, index, published
from mmvit.weights.download import cache_dir, check_sha256, resolve, sha256
from mmvit.weights.load import load_checkpoint, load_into, save_safetensors

__all__ = [
    "Published",
    "cache_dir",
    "check_sha256",
    "index",
    "load_checkpoint",
    "load_into",
    "published",
    "resolve",
    "save_safetensors",
    "sha256",
]
