"""Necks and pixel decoders: what joins the maps of a backbone."""

from .hybrid_encoder import HybridEncoder
from .kmax_pixel_decoder import KMaXPixelDecoder
from .msdeform_pixel_decoder import MSDeformAttnPixelDecoder
from .pem_pixel_decoder import PEMPixelDecoder
from .vw_pixel_decoder import VWDeformAttnPixelDecoder, VWPixelDecoder

__all__ = [
    "HybridEncoder",
    "KMaXPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "PEMPixelDecoder",
    "VWDeformAttnPixelDecoder",
    "VWPixelDecoder",
]
