"""Training of the embedded model's three networks with Lightning, one after the other."""

from ldm.training.autoencoder import AutoencoderTraining
from ldm.training.diffusion import DiffusionTraining
from ldm.training.words import WordsTraining

__all__ = ["AutoencoderTraining", "DiffusionTraining", "WordsTraining"]
