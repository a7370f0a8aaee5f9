"""FreeU's operator: backbone scaling and skip filtering, without a Fourier transform.

The published filter multiplies a window of the skip's lowest frequencies by s and keeps the real part. That is the
skip plus (s - 1) times its projection on a few cosines and sines, so two thin matrix products replace two FFTs,
exactly, in every dtype and at every size.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that what one sampling run cached may meet autograd in another
def low_frequency_basis(
    height: int, width: int, threshold: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The real functions that the filter's window spans, scaled so that V V^T is the projection: (HW, rank).

    The window holds the frequencies -t to t - 1 of both axes. Taking the real part gives a frequency and its mirror
    the mean of their weights, g; a pair contributes its cosine and sine, a frequency that is its own mirror (DC,
    Nyquist) its cosine alone. For t = 1 the rank is 7.
    """
    window = torch.zeros(height, width, dtype=torch.float64)
    rows = torch.arange(max(-threshold, -(height // 2)), min(threshold, (height + 1) // 2))
    columns = torch.arange(max(-threshold, -(width // 2)), min(threshold, (width + 1) // 2))
    window[rows[:, None] % height, columns[None] % width] = 1.0
    mirrored = window.flip(0, 1).roll((1, 1), (0, 1))  # at k the weight of -k
    g = (window + mirrored) / 2

    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None] / width
    functions = []
    for k, j in g.nonzero().tolist():
        mirror = (-k % height, -j % width)
        weight = g[k, j] / (height * width)
        phase = 2 * torch.pi * (k * y + j * x)  # (H, W)
        if mirror == (k, j):
            functions.append(weight.sqrt() * phase.cos())
        elif (k, j) < mirror:
            functions += [(2 * weight).sqrt() * phase.cos(), (2 * weight).sqrt() * phase.sin()]
    return torch.stack(functions, dim=-1).flatten(0, 1).to(device, dtype)  # (HW, rank)


def _add_low_frequencies(x: Tensor, threshold: int, gain: float, in_place: bool) -> Tensor:
    """x plus `gain` times its low-frequency part, in either memory format; x is (B, C, H, W)."""
    basis = low_frequency_basis(x.shape[2], x.shape[3], threshold, x.dtype, x.device)
    basis = basis.expand(len(x), -1, -1)  # (B, HW, rank)
    add = torch.Tensor.baddbmm_ if in_place else torch.baddbmm
    if x.stride(1) == 1:  # channels last: positions are rows
        maps = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C)
        maps = add(maps, basis, basis.mT @ maps, alpha=gain)
        return maps.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    maps = x.flatten(2)  # (B, C, HW)
    return add(maps, maps @ basis, basis.mT, alpha=gain).view(x.shape)


def fourier_filter(x: Tensor, threshold: int = 1, scale: float = 1.0) -> Tensor:
    """The skip x with its lowest frequencies multiplied by `scale`; (B, C, H, W), real, any dtype and size.

    The window is {-threshold, ..., threshold - 1} on both axes, as in the published code (the paper's eqs. 5 to 7
    with r_thresh = 1 name DC alone). At threshold 1 the gains are s at DC, (1 + s) / 2 at (+-1, 0), (0, +-1) and
    +-(1, 1), and 1 elsewhere.
    """
    return x if scale == 1 else _add_low_frequencies(x, threshold, scale - 1, in_place=False)


def backbone_factor(h: Tensor, b: float, version: int) -> float | Tensor:
    """alpha, by which half of the backbone h, (B, C, H, W), is multiplied.

    Version 1: b. Version 2 (paper eqs. 2 and 3): (B, 1, H, W) in h's dtype, 1 where the mean over the channels is
    lowest and b where it is highest; 1 everywhere on a flat map, where the published code divides by zero.
    """
    if version == 1:
        return b
    m = h.mean(1, keepdim=True, dtype=torch.promote_types(h.dtype, torch.float32))  # (B, 1, H, W)
    lowest, highest = m.amin((2, 3), keepdim=True), m.amax((2, 3), keepdim=True)
    span = highest - lowest
    return (1 + (b - 1) * (m - lowest) / torch.where(span > 0, span, 1.0)).to(h.dtype)


def scale_backbone(h: Tensor, b: float, version: int = 1) -> Tensor:
    """The backbone h, (B, C, H, W), with its first C // 2 channels multiplied by alpha (paper eq. 4)."""
    if b == 1:
        return h
    half = h.shape[1] // 2
    return torch.cat([h[:, :half] * backbone_factor(h, b, version), h[:, half:]], dim=1)


def free_u(fused: Tensor, width: int, b: float, s: float, version: int = 1, threshold: int = 1) -> Tensor:
    """FreeU on the concatenation of backbone (the first `width` channels) and skip, (B, width + skip, H, W).

    `fused` is overwritten, since a decoder block owns its concatenation, except where autograd needs its values or
    it is a view with gaps. A factor of one skips its half of the work, so that all ones leave the bits as they are.
    """
    backbone, skip = fused[:, :width], fused[:, width:]
    dense = fused.is_contiguous() or fused.is_contiguous(memory_format=torch.channels_last)
    if fused.requires_grad or not dense:
        return torch.cat([scale_backbone(backbone, b, version), fourier_filter(skip, threshold, s)], dim=1)
    if b != 1:
        backbone[:, : width // 2].mul_(backbone_factor(backbone, b, version))
    if s != 1:
        _add_low_frequencies(skip, threshold, s - 1, in_place=True)
    return fused
