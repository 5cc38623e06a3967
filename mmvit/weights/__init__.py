"""Published checkpoints: an index of them, download with checks, and safe loading."""

from mmvit.weights.catalogue import Published, PublishedBackbone, backbones, index, published
from mmvit.weights.download import cache_dir, check_sha256, fetch, lock, resolve, sha256
from mmvit.weights.figures import Figures, published_figures
from mmvit.weights.load import load_checkpoint, load_into, save_safetensors

__all__ = [
    "Figures",
    "Published",
    "PublishedBackbone",
    "backbones",
    "cache_dir",
    "check_sha256",
    "fetch",
    "index",
    "load_checkpoint",
    "load_into",
    "lock",
    "published",
    "published_figures",
    "resolve",
    "save_safetensors",
    "sha256",
]
