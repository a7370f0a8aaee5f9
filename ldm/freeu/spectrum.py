"""The paper's measurements of feature maps: relative log amplitude, and low and high frequencies."""

import math

import torch
from torch import Tensor

HIGH_END = math.pi / 2  # where the upper half of the frequencies begins


def square(x: Tensor) -> Tensor:
    """The middle of maps (..., H, W), cropped to a square, (..., N, N) with N the smaller of H and W."""
    height, width = x.shape[-2:]
    n = min(height, width)
    top, left = (height - n) // 2, (width - n) // 2
    return x[..., top : top + n, left : left + n]


def relative_log_amplitude(x: Tensor) -> Tensor:
    """The log amplitude of features along the frequency diagonal, less that of the mean, one curve a sample.

    x is (B, C, H, W), cropped to its middle square where H and W differ, and taken in float32. The logarithm
    is averaged over the channels. Returns (B, (N + 1) // 2), zero at first, for the frequencies of
    `diagonal_frequencies`. The average over B is the curve of Park and Kim (arXiv 2202.06709, figure 2),
    whose definition FreeU's authors cite. White noise is flat at ln(2) / 2, as the mean's amplitude is real.

    Raises ValueError where x is not (B, C, H, W).
    """
    if x.ndim != 4:
        raise ValueError(f"Features are (B, C, H, W) here, not {tuple(x.shape)}.")
    maps = square(x).float()  # (B, C, N, N)
    amplitude = torch.fft.fft2(maps).abs()
    # From the unshifted transform's corner the diagonal goes outward through 0, 1, ... cycles a map.
    diagonal = amplitude.diagonal(dim1=-2, dim2=-1)[..., : (maps.shape[-1] + 1) // 2]  # (B, C, n)
    curve = (diagonal + 1e-6).log().mean(1)  # (B, n)
    return curve - curve[:, :1]


def diagonal_frequencies(side: int) -> Tensor:
    """The frequencies 2 pi k / side of a relative log amplitude of maps of that side, from 0 to below pi."""
    return torch.arange((side + 1) // 2) * (2 * math.pi / side)


def high_end(curve: Tensor, side: int) -> Tensor:
    """The mean of curves (..., (side + 1) // 2) over the frequencies from pi / 2 up: (...,).

    Maps of side 1 and 2 have no such frequency: the mean is NaN.
    """
    return curve[..., diagonal_frequencies(side) >= HIGH_END - 1e-6].mean(-1)


def band_split(x: Tensor, radius: float = 0.1) -> tuple[Tensor, Tensor]:
    """Maps (..., H, W) as the sum of their low and their high frequencies, both of x's shape, in float32.

    Low is what lies in the centred disc of `radius` cycles a pixel, border and mean included; on a square
    that is `radius` times H bins.
    """
    maps = x.float().contiguous()  # oneMKL fails on expanded ones in torch 2.6
    height, width = maps.shape[-2:]
    down = torch.fft.fftfreq(height, device=maps.device)[:, None]
    across = torch.fft.rfftfreq(width, device=maps.device)
    disc = down.square() + across.square() <= radius**2 * (1 + 1e-6)  # (H, W // 2 + 1)
    low = torch.fft.irfft2(torch.fft.rfft2(maps) * disc, s=(height, width))  # (..., H, W)
    return low, maps - low
