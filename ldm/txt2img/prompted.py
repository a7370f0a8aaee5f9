"""The model that a script draws prompts with."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from ldm.checkpoint import load_model
from ldm.errors import InputError
from ldm.models.diffusion.ddpm import LatentDiffusion


def load_prompted(
    config: DictConfig,
    ckpt: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    download: bool,
    trust_config: bool,
) -> LatentDiffusion:
    """As `ldm.load_model`. Raises InputError also where the model takes no prompts."""
    model = load_model(config, ckpt, device, dtype, download=download, trust_config=trust_config)
    if not isinstance(model, LatentDiffusion) or isinstance(model.cond_stage_model, nn.Identity):
        raise InputError("The config's model draws no prompts; its target has to be LatentDiffusion.")
    return model
