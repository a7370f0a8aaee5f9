"""FreeU: the operator and its settings. Imports torch and nothing else of this project."""

from ldm.freeu.operator import backbone_factor, fourier_filter, free_u, scale_backbone
from ldm.freeu.settings import PRESETS, DecoderStage, FreeUSettings, Match

__all__ = [
    "PRESETS",
    "DecoderStage",
    "FreeUSettings",
    "Match",
    "backbone_factor",
    "fourier_filter",
    "free_u",
    "scale_backbone",
]
