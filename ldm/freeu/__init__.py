"""FreeU: the operator and its settings. Imports nothing of this project beside itself, and torch."""

from ldm.freeu.operator import Channels, backbone_factor, fourier_filter, free_u, scale_backbone
from ldm.freeu.settings import (
    NEUTRAL,
    PRESETS,
    TRAINING_STEPS,
    DecoderStage,
    FreeUSettings,
    Match,
    find_preset,
)

__all__ = [
    "NEUTRAL",
    "PRESETS",
    "TRAINING_STEPS",
    "Channels",
    "DecoderStage",
    "FreeUSettings",
    "Match",
    "backbone_factor",
    "find_preset",
    "fourier_filter",
    "free_u",
    "scale_backbone",
]
