"""FreeU's operator: backbone scaling and skip filtering, without a Fourier transform.

The published filter multiplies a window of the skip's lowest frequencies by s and keeps the real part. That
is the skip plus (s - 1) times its projection on a few cosines and sines, so two thin matrix products replace
two FFTs, exactly, in every dtype and at every size. On a CPU filter.c does the same in one go.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ldm.freeu import filter_in_c
from ldm.freeu.native import is_plain

Channels = Literal["first", "second", "alternate", "all"]


def seven_waves(height: int, width: int, device: torch.device) -> Tensor:
    """V for threshold 1 on maps of side 3 or more, so that V^T V takes the low frequencies out: (7, HW).

    The window holds the frequencies -1 and 0 of both axes. Taking the real part shares each one's weight with
    its mirror, which leaves a constant, and the cosine and sine of (1, 0), (0, 1) and (1, 1).
    """
    down = 2 * math.pi * torch.arange(height, dtype=torch.float64, device=device)[:, None] / height
    across = 2 * math.pi * torch.arange(width, dtype=torch.float64, device=device)[None] / width
    phases = [down.expand(-1, width), across.expand(height, -1), down + across]  # (H, W) each
    waves = [
        torch.ones_like(phases[0]),
        *(wave(phase) for phase in phases for wave in (torch.cos, torch.sin)),
    ]
    return torch.stack(waves).flatten(1) / root(height * width)


def axis_waves(size: int, threshold: int, device: torch.device) -> Tensor:
    """Cosines, then sines, of the window's K frequencies along an axis, divided by sqrt(size): (size, 2K).

    They are those from -t to t - 1, or the whole spectrum where that is smaller.
    """
    k = torch.arange(max(-threshold, -(size // 2)), min(threshold, (size + 1) // 2), device=device)  # (K,)
    positions = torch.arange(size, dtype=torch.float64, device=device) / size
    phase = 2 * math.pi * positions[:, None] * k  # (size, K)
    return torch.cat([phase.cos(), phase.sin()], dim=1) / root(size)


def root(size: int) -> float:
    """A size's square root. To torch.jit.trace sizes are tensors, and math would make constants of them."""
    return size**0.5 if torch.jit.is_tracing() else math.sqrt(size)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that what one sampling run cached may meet autograd in another
def kept(
    make: Callable[..., Tensor], numbers: tuple[int, ...], dtype: torch.dtype, at: torch.device
) -> Tensor:
    """Waves that are made once, in float64 on the CPU, as not every device has it."""
    return make(*numbers, torch.device("cpu")).to(at, dtype)


def waves_for(x: Tensor, make: Callable[..., Tensor], *numbers: int) -> Tensor:
    """The waves that `make` makes of these numbers, in x's dtype and on its device.

    A compiled graph makes them itself and where it runs: one that also asks the CPU is no CUDA graph.
    """
    if torch.compiler.is_compiling() and x.device.type != "mps":
        return make(*numbers, x.device).to(x.dtype)
    # What is made for a tensor without numbers is none for those that have them.
    get = kept if type(x) is Tensor else kept.__wrapped__
    return get(make, numbers, x.dtype, x.device)


def low_frequencies_by_axes(x: Tensor, threshold: int) -> Tensor:
    """The real part of x's frequencies in the filter's window, (B, C, H, W), one axis after the other.

    With E = P + iQ the window's waves along an axis, that is Re E (E^H x E*) E^T. Its cost grows with the
    threshold, that of one joint basis for both axes would with its square.
    """
    down, across = (waves_for(x, axis_waves, size, threshold) for size in x.shape[2:])
    waves = down.mT @ x @ across  # (B, C, 2K, 2J)
    (pp, pq), (qp, qq) = (rows.chunk(2, dim=-1) for rows in waves.chunk(2, dim=-2))
    real, imaginary = pp - qq, pq + qp  # (B, C, K, J) each, the latter's sign turned
    upper, lower = torch.cat([real, imaginary], dim=-1), torch.cat([imaginary, -real], dim=-1)
    return down @ torch.cat([upper, lower], dim=-2) @ across.mT


def _add_low_frequencies(x: Tensor, threshold: int, gain: float | Tensor, in_place: bool) -> Tensor:
    """x, (B, C, H, W), plus `gain` times its low-frequency part, in either memory format.

    `gain` is one number or one for each sample, (B, 1, 1).
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # which rounds what is added to maps in float32
        with torch.autocast(kind, enabled=False):
            return _add_low_frequencies(x, threshold, gain, in_place)
    # Before macOS 15 MPS loses what a product adds in place to a part of a tensor, as the skip is.
    if threshold > 1 or min(x.shape[2:]) < 3 or x.device.type == "mps":
        low = low_frequencies_by_axes(x, threshold)
        low *= gain[..., None] if isinstance(gain, Tensor) else gain
        return x.add_(low) if in_place else x + low
    if filter_in_c.has_filter(x) and (not isinstance(gain, Tensor) or is_plain(gain)):
        memory = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        x = x if in_place else x.clone(memory_format=memory)
        filter_in_c.add_low_frequencies(x, gain)
        return x
    waves = waves_for(x, seven_waves, *x.shape[2:])  # (7, HW)
    every = waves.expand(x.shape[0], -1, -1)  # (B, 7, HW)
    add = torch.Tensor.baddbmm_ if in_place else torch.baddbmm
    if x.stride(1) == 1:  # channels last: positions are rows
        maps = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C)
        maps = add(maps, every.mT, gain * (every @ maps))
        return maps.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    maps = x.flatten(2)  # (B, C, HW)
    return add(maps, gain * (maps @ every.mT), every).view(x.shape)


def fourier_filter(x: Tensor, threshold: int = 1, scale: float = 1.0) -> Tensor:
    """The skip x with its lowest frequencies multiplied by `scale`; (B, C, H, W), real, any dtype and size.

    The window is {-threshold, ..., threshold - 1} on both axes, as in the published code (the paper's eqs. 5
    to 7 with r_thresh = 1 name DC alone). At threshold 1 the gains are s at DC, (1 + s) / 2 at (+-1, 0), (0,
    +-1) and +-(1, 1), and 1 elsewhere.
    """
    return x if scale == 1 else _add_low_frequencies(x, threshold, scale - 1, in_place=False)


def backbone_factor(h: Tensor, b: float, version: int) -> float | Tensor:
    """alpha, by which half of the backbone h, (B, C, H, W), is multiplied.

    Version 1: b. Version 2 (paper eqs. 2 and 3): (B, 1, H, W) in h's dtype, 1 where the mean over the
    channels is lowest and b where it is highest; 1 everywhere on a flat map, where the published code divides
    by zero.
    """
    if version == 1:
        return b
    m = h.mean(1, keepdim=True, dtype=torch.promote_types(h.dtype, torch.float32))  # (B, 1, H, W)
    lowest, highest = m.amin((2, 3), keepdim=True), m.amax((2, 3), keepdim=True)
    span = highest - lowest
    return (1 + (b - 1) * (m - lowest) / torch.where(span > 0, span, 1.0)).to(h.dtype)


def scaled_channels(width: int, channels: Channels | float = "first") -> slice:
    """Which of a backbone's channels b scales: a half, the paper's first one, all, or a first fraction."""
    half = width // 2
    if channels == "first":
        return slice(0, half)
    if channels == "second":
        return slice(half, width)
    if channels == "alternate":
        return slice(0, width, 2)
    return slice(0, width if channels == "all" else round(channels * width))


def scale_backbone(h: Tensor, b: float, version: int = 1, channels: Channels | float = "first") -> Tensor:
    """The backbone h, (B, C, H, W), with its first C // 2 channels multiplied by alpha (paper eq. 4).

    `channels` chooses others, see `scaled_channels`.
    """
    if b == 1:
        return h
    scaled = h.clone()
    scaled[:, scaled_channels(h.shape[1], channels)] *= backbone_factor(h, b, version)
    return scaled


def free_u(
    fused: Tensor,
    width: int,
    b: float,
    s: float,
    version: int = 1,
    threshold: int = 1,
    weight: Tensor | None = None,
    channels: Channels | float = "first",
) -> Tensor:
    """FreeU on the concatenation of backbone (the first `width` channels) and skip, (B, width + skip, H, W).

    `weight`, (B,), moves each sample's factors from one, at 0, to b and s, at 1. `channels` says which of the
    backbone's are scaled, see `scaled_channels`.

    `fused` is overwritten, since a decoder block owns its concatenation, except where autograd records (it
    may need the values, and gradient checkpointing runs on the same input twice) or it is a view with gaps. A
    factor of one skips its half of the work, so that all ones leave the bits as they are.
    """
    dense = fused.is_contiguous() or fused.is_contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() or fused.requires_grad or not dense:
        fused = fused.clone(memory_format=torch.preserve_format if dense else torch.contiguous_format)
    backbone, skip = fused[:, :width], fused[:, width:]
    if b != 1:
        alpha = backbone_factor(backbone, b, version)
        if weight is not None:
            alpha = 1 + weight.to(fused)[:, None, None, None] * (alpha - 1)  # (B, 1, 1 or H, 1 or W)
        backbone[:, scaled_channels(width, channels)].mul_(alpha)
    if s != 1:
        gain = s - 1 if weight is None else (s - 1) * weight.to(fused)[:, None, None]  # (B, 1, 1)
        _add_low_frequencies(skip, threshold, gain, in_place=True)
    return fused
