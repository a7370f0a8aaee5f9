"""Whether the networks that a config put together can draw a prompt together."""

import math

from ldm.errors import InputError
from ldm.freeu.diffusers import uncompiled
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import UNetModel


def check_parts(model: LatentDiffusion) -> None:
    """Raises InputError where a part of the model is of another kind or another width than the rest needs."""
    if not isinstance(model, LatentDiffusion):
        raise InputError(f"The model is a {type(model).__name__}: to draw it has to be a LatentDiffusion.")
    unet = uncompiled(model.model.diffusion_model)
    autoencoder, encoder = model.first_stage_model, model.cond_stage_model
    if not isinstance(unet, UNetModel):
        raise InputError(f"unet_config is a {type(unet).__name__}: its target has to be a UNetModel.")
    if not isinstance(autoencoder, AutoencoderKL):
        raise InputError(f"first_stage_config is a {type(autoencoder).__name__}, not an AutoencoderKL.")
    if not hasattr(encoder, "truncated"):
        raise InputError(f"cond_stage_config is a {type(encoder).__name__}, which reads no prompts.")
    if model.model.conditioning_key != "crossattn":
        key = model.model.conditioning_key
        raise InputError(
            f"conditioning_key is {key!r}, but prompts reach the U-Net by crossattn alone: "
            "a config for prompts has to say `conditioning_key: crossattn`."
        )
    if unet.num_classes is not None:
        raise InputError(f"The U-Net's num_classes is {unet.num_classes!r}: prompts give it no class.")

    given = {
        "the U-Net takes": unet.in_channels,
        "the U-Net gives": unet.out[-1].out_channels,
        "the autoencoder decodes": autoencoder.post_quant_conv.in_channels,
    }
    for what, channels in given.items():
        if channels != model.channels:
            raise InputError(f"The model has channels: {model.channels}, but {what} {channels}.")
    if not (math.isfinite(model.scale_factor) and model.scale_factor > 0):
        raise InputError(f"scale_factor is {model.scale_factor}: give a number above zero.")
