"""FreeU for diffusers pipelines, under the names that the authors published.

`ldm.freeu.diffusers` has the second version, presets and everything else.
"""

import warnings
from typing import Any

from torch import nn

from ldm.freeu import NEUTRAL, FreeUSettings
from ldm.freeu import fourier_filter as Fourier_filter
from ldm.freeu.diffusers import attach, refuse_diffusers_own, unet_of

__all__ = [
    "Fourier_filter",
    "register_crossattn_upblock2d",
    "register_free_crossattn_upblock2d",
    "register_free_upblock2d",
    "register_upblock2d",
]


def register_free_upblock2d(
    model: Any, b1: float = 1.2, b2: float = 1.4, s1: float = 0.9, s2: float = 0.2
) -> None:
    """FreeU's first version in a pipeline's `UpBlock2D`s, by the backbone's width; warns if it meets none.

    Raises ValueError for a model without a U-Net that concatenates skips, and for one with diffusers' own
    FreeU on.
    """
    _register(model, "UpBlock2D", FreeUSettings(b1, b2, s1, s2))


def register_free_crossattn_upblock2d(
    model: Any, b1: float = 1.2, b2: float = 1.4, s1: float = 0.9, s2: float = 0.2
) -> None:
    """The same in its `CrossAttnUpBlock2D`s. The two know nothing of each other; call again to change."""
    _register(model, "CrossAttnUpBlock2D", FreeUSettings(b1, b2, s1, s2))


def register_upblock2d(model: Any) -> None:
    """Takes FreeU out of a pipeline's `UpBlock2D`s, with the same warning and errors."""
    _register(model, "UpBlock2D", NEUTRAL)


def register_crossattn_upblock2d(model: Any) -> None:
    """Takes FreeU out of its `CrossAttnUpBlock2D`s."""
    _register(model, "CrossAttnUpBlock2D", NEUTRAL)


def _register(model: Any, class_name: str, settings: FreeUSettings) -> None:
    def concerns(block: nn.Module) -> bool:
        return any(base.__name__ == class_name for base in type(block).__mro__)

    unet: Any = unet_of(model)
    refuse_diffusers_own(*unet.up_blocks)
    if not any(concerns(block) for block in unet.up_blocks):
        found = ", ".join(sorted({type(block).__name__ for block in unet.up_blocks}))
        warnings.warn(f"FreeU meets no {class_name}: this U-Net's blocks are {found}.", stacklevel=3)
        return
    try:
        attach(unet, settings, concerns=concerns)
    except ValueError as no_width_fits:
        warnings.warn(f"FreeU meets no {class_name}. {no_width_fits}", stacklevel=3)
