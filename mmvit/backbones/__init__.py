"""Backbones: one file per paper."""

from .base import Backbone, create_backbone, find_backbone, list_backbones, load_pretrained
from .hgnetv2 import HGNetv2
from .presnet import PResNet

__all__ = ["Backbone", "HGNetv2", "PResNet", "create_backbone", "find_backbone", "list_backbones", "load_pretrained"]
