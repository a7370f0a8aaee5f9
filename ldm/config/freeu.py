"""FreeU in the config of a model: what names it, how it comes in and how it is taken out."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.config.reading import FAULTS, reason
from ldm.errors import InputError

UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
FREE_UNET = "ldm.modules.diffusionmodules.openaimodel.Free_UNetModel"
FACTORS = ("b1", "b2", "s1", "s2")
FREEU_NAMES = (*FACTORS, "version", "threshold", "match", "strength", "start", "stop", "ramp", "channels")
FREEU = (*FREEU_NAMES, "stages")


def set_freeu(config: DictConfig, settings: Mapping[str, Any]) -> None:
    """Puts FreeU's `settings` (b1, b2, s1, s2, version, ...) into a model config, on top of those it has.

    A plain U-Net becomes a `Free_UNetModel`; factors that neither names are one. Raises InputError.
    """
    unet = unet_section(config)
    if unet.get("target") == UNET:
        unet.target = FREE_UNET
        unet.params = OmegaConf.merge(dict.fromkeys(FACTORS, 1.0), unet.params)
    try:
        parts = [unet.params, OmegaConf.create(dict(settings))]
        for part in parts:
            # JSON and `stages.64=` have texts for keys, which OmegaConf takes for others than the numbers.
            if isinstance(stages := part.get("stages"), DictConfig):
                part.stages = {int(str(key)) if str(key).isdecimal() else key: stages[key] for key in stages}
        unet.params = OmegaConf.merge(*parts)
    except FAULTS as fault:
        raise InputError(f"The config cannot take FreeU's settings: {reason(fault)}.") from None


def remove_freeu(config: DictConfig) -> None:
    """Makes the U-Net of a model config the plain one."""
    unet = unet_section(config)
    if unet.get("target") == FREE_UNET:
        unet.target = UNET
        for name in FREEU:
            unet.params.pop(name, None)


def unet_section(config: DictConfig) -> DictConfig:
    """The section of a latent diffusion model's config that describes its U-Net. Raises InputError."""
    unet = OmegaConf.select(config, "model.params.unet_config", throw_on_resolution_failure=False)
    if not isinstance(unet, DictConfig) or not isinstance(unet.get("params"), DictConfig):
        raise InputError("The config describes no U-Net: it has no model.params.unet_config.params.")
    return unet
