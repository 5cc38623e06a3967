"""Backbones: one file per paper."""

from .base import Backbone, create_backbone, find_backbone, list_backbones, load_pretrained
from .convnext import ConvNeXt
from .hgnetv2 import HGNetv2
from .mit import MiT
from .presnet import PResNet
from .pvt import PVT, PVTv2
from .resnet import ResNet
from .slab import PVTPRepBN, SlabPVT, SlabSwin, SwinPRepBN, SwinRepBN
from .stdc import STDC
from .swin import Swin

__all__ = [
    "Backbone",
    "ConvNeXt",
    "HGNetv2",
    "MiT",
    "PResNet",
    "PVT",
    "PVTv2",
    "PVTPRepBN",
    "ResNet",
    "STDC",
    "SlabPVT",
    "SlabSwin",
    "Swin",
    "SwinPRepBN",
    "SwinRepBN",
    "create_backbone",
    "find_backbone",
    "list_backbones",
    "load_pretrained",
]
