"""FreeU with settings of its own for each sample of a batch."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.freeu import FreeUSettings, free_u
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel


@contextlib.contextmanager
def freeu_of_each(unet: Free_UNetModel, settings: Sequence[FreeUSettings]) -> Iterator[None]:
    """Within it the U-Net takes batches of n samples, n being the number of settings, or of 2n, as guidance
    makes them: settings k belong to samples k and n + k.

    Raises InputError where settings do not fit the U-Net.
    """
    n = len(settings)
    factors = [unet.factors_of(one) for one in settings]
    weights: list[Tensor | None] = []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timesteps = kwargs["timesteps"] if "timesteps" in kwargs else args[1]  # (n,) or (2n,)
        run = torch.arange(unet.training_steps, device=timesteps.device)
        weights[:] = [
            None if one.acts_throughout() else one.weight(timesteps[k::n], run)
            for k, one in enumerate(settings)
        ]

    def weigh(i: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        fused, *rest = args  # (n or 2n, C, H, W)
        for k, how in enumerate(settings):
            b, s = factors[k][i]
            part = fused[k::n]
            width = unet.decoder_stages[i].width
            fused[k::n] = free_u(part, width, b, s, how.version, how.threshold, weights[k], how.channels)
        return (fused, *rest)

    handles = [unet.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [
        block.register_forward_pre_hook(partial(weigh, i)) for i, block in enumerate(unet.output_blocks)
    ]
    try:
        with unet.under(unet.freeu.off()):
            yield
    finally:
        for handle in handles:
            handle.remove()
