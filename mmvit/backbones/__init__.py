"""Backbones: one file per paper."""

from .agent_attention import AgentPVT, AgentSwin
from .base import Backbone, create_backbone, find_backbone, load_pretrained
from .catalogue import BackboneInfo, backbone_info, list_backbones
from .convnext import ConvNeXt
from .crossformer import CrossFormer, CrossFormerPlusPlus
from .cswin import CSWin
from .efficientformer import EfficientFormer, EfficientFormerV2
from .hgnetv2 import HGNetv2
from .hornet import HorNet
from .iformer import IFormer
from .mit import MiT
from .nat import NAT, DiNAT, DiNATs
from .nextvit import NextViT
from .poolformer import MetaFormer, PoolFormer
from .presnet import PResNet
from .pvt import PVT, PVTv2
from .pyramid import Pyramid
from .resnet import ResNet
from .shvit import SHViT
from .slab import PVTPRepBN, SlabPVT, SlabSwin, SwinPRepBN, SwinRepBN
from .smt import SMT
from .stdc import STDC
from .swin import Swin
from .unireplknet import UniRepLKNet
from .vit import ViT
from .vit_comer import ViTCoMer
from .vitdet import ViTDet

__all__ = [
    "AgentPVT",
    "AgentSwin",
    "Backbone",
    "BackboneInfo",
    "CSWin",
    "ConvNeXt",
    "CrossFormer",
    "CrossFormerPlusPlus",
    "DiNAT",
    "DiNATs",
    "EfficientFormer",
    "EfficientFormerV2",
    "HGNetv2",
    "HorNet",
    "IFormer",
    "MetaFormer",
    "MiT",
    "NAT",
    "NextViT",
    "PResNet",
    "PVT",
    "PVTv2",
    "PVTPRepBN",
    "Pyramid",
    "PoolFormer",
    "ResNet",
    "SHViT",
    "SMT",
    "STDC",
    "SlabPVT",
    "SlabSwin",
    "Swin",
    "SwinPRepBN",
    "SwinRepBN",
    "ViT",
    "ViTCoMer",
    "ViTDet",
    "UniRepLKNet",
    "backbone_info",
    "create_backbone",
    "find_backbone",
    "list_backbones",
    "load_pretrained",
]
