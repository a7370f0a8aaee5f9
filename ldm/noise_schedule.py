"""Says how the noise schedule in a checkpoint differs from the config's, by which the model samples."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.models.diffusion.ddpm import make_schedule

# The rounding of bfloat16, the coarsest precision that files come in, and the noise that counts as none.
ROUNDING: Final = 2**-8
NEARLY_NONE: Final = 1e-6
TAKEN: Final = "the config's schedule is taken"


def other_schedule(slots: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """What to say where a file's noise schedule is not the model's, which is that of the config; else None.

    Nothing is said of numbers that do not fall, from 1 at most to 0 at least, which are no schedule, nor of
    those in eight bits, which may be any.
    """
    own = slots.get("alphas_cumprod")
    if own is None or own.is_meta:
        return None
    its = tensors.get("alphas_cumprod", own)
    in_a_row = its.ndim == 1 and len(its) > 1 and its.dtype.itemsize > 1
    its = its.float()
    is_one = in_a_row and 1 >= its[0] > its[-1] >= 0 and (its.diff() <= 0).all()
    differs = is_one and not _alike(its, own, ROUNDING)
    if "ztsnr" in tensors or (differs and its[-1] < NEARLY_NONE):
        return "the checkpoint has a noise schedule of zero terminal SNR, which is not supported: " + TAKEN
    if not differs:
        return None

    betas = tensors.get("betas", its).float()
    if betas.shape != its.shape or betas is its:
        betas = 1 - its / torch.cat([its.new_ones(1), its[:-1]])
    start, end = float(f"{betas[0]:.6g}"), float(f"{betas[-1]:.6g}")
    remedy = TAKEN
    with suppress(InputError):
        if _alike(make_schedule(len(its), start, end)["alphas_cumprod"], its, 4 * ROUNDING):
            remedy = f"add model.params.linear_start={start:g} model.params.linear_end={end:g}"
            if len(its) != len(own):
                remedy += f" model.params.timesteps={len(its)}"
    return (
        f"the checkpoint's noise schedule has {len(its)} betas from {start:g} to {end:g}, the config's "
        f"{len(own)} from {slots['betas'][0]:.6g} to {slots['betas'][-1]:.6g}: {remedy}"
    )


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, tolerance, NEARLY_NONE)
