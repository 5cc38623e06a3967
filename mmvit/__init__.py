"""mmvit: vision backbones in detectors and segmenters, on the OpenMMLab stack."""
__version__ = "0.1.0"
