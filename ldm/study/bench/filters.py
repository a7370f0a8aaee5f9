"""FreeU on the ten concatenations that it meets in a step of Stable Diffusion 1.4, one guided picture.

Its filters alone, and with the backbone's scaling. The concatenation itself is not counted.
"""

from collections.abc import Callable, Sequence
from importlib import util
from typing import Any

import torch
from torch import Tensor
from torch.fft import fft2, fftshift, ifft2, ifftshift

from ldm.config.reading import load_config
from ldm.freeu import PRESETS, free_u
from ldm.study.bench.rounds import Row, Work, alternate, rows
from ldm.util import instantiate_from_config

Joint = tuple[Tensor, Tensor, float, float]


def joints_of_a_step(dtype: torch.dtype, device: torch.device, side: int = 64) -> list[Joint]:
    """Backbone and skip, (B, C, H, W), b and s where FreeU acts, for random latents of that side."""
    with torch.device("meta"):
        unet = instantiate_from_config(load_config("v1-inference.yaml").model.params.unet_config)
    factors = PRESETS["sd14", 1].factors(unet.decoder_stages, unet.model_channels)
    joints = []
    for stage, (b, s) in zip(unet.decoder_stages, factors, strict=True):
        if (b, s) != (1, 1):
            fused = torch.randn(2, stage.width + stage.skip_width, *2 * [side // stage.downsampling])
            joints.append((*fused.to(device, dtype).split([stage.width, stage.skip_width], dim=1), b, s))
    return joints


# Each makes ready what it starts from, in maps that are its own, and returns what is timed. With a b of one
# that is the filter alone.
def ours(h: Tensor, skip: Tensor, b: float, s: float, memory: Any = torch.contiguous_format) -> Work:
    fused = torch.cat([h, skip], dim=1).contiguous(memory_format=memory)
    return lambda: free_u(fused, h.shape[1], b, s)


def channels_last(h: Tensor, skip: Tensor, b: float, s: float) -> Work:
    return ours(h, skip, b, s, memory=torch.channels_last)


def diffusers(h: Tensor, skip: Tensor, b: float, s: float) -> Work:
    from diffusers.utils.torch_utils import apply_freeu, fourier_filter

    if b == 1:
        return lambda: (h, fourier_filter(skip, threshold=1, scale=s))  # type: ignore[arg-type]
    return lambda: apply_freeu(0, h, skip, b1=b, s1=s)


def original(h: Tensor, skip: Tensor, b: float, s: float) -> Work:
    def run() -> tuple[Tensor, Tensor]:
        half, row, column = h.shape[1] // 2, skip.shape[2] // 2, skip.shape[3] // 2
        if b != 1:
            h[:, :half] = h[:, :half] * b
        mask = torch.ones(skip.shape, device=skip.device)
        mask[..., row - 1 : row + 1, column - 1 : column + 1] = s
        spectrum = fftshift(fft2(skip.float()), dim=(-2, -1)) * mask  # transforms know no bfloat16
        return h, ifft2(ifftshift(spectrum, dim=(-2, -1))).real.to(skip.dtype)

    return run


CONTENDERS: dict[str, Callable[[Tensor, Tensor, float, float], Work]] = {
    "ours, channels last": channels_last,
    "ours, contiguous": ours,
    **({"diffusers": diffusers} if util.find_spec("diffusers") else {}),
    "original": original,
}


def measure(dtype: torch.dtype, device: torch.device, rounds: int) -> list[Row]:
    """The ten filters of a step by each contender, then FreeU as a whole."""
    joints = joints_of_a_step(dtype, device, side=64)
    filters_alone = [(h, skip, 1.0, s) for h, skip, _, s in joints]
    return [
        *in_turns("ten filters of a step", filters_alone, rounds),
        *in_turns("FreeU at ten joints", joints, rounds),
    ]


def in_turns(what: str, joints: Sequence[Joint], rounds: int) -> list[Row]:
    """All of these joints by each contender, one joint after the other.

    Maps are the contender's own and lie in the cache, as in a step, where the concatenation has just been
    written.
    """
    totals = {name: rounds * [0.0] for name in CONTENDERS}
    for h, skip, b, s in joints:
        works = {name: make(h.clone(), skip.clone(), b, s) for name, make in CONTENDERS.items()}
        for name, seconds in alternate(works, rounds, h.device, warm=True).items():
            totals[name] = [total + one for total, one in zip(totals[name], seconds, strict=True)]
    return rows(what, joints[0][0].dtype, totals)
