"""What figures measure in pictures, (n, H, W, 3) of bytes each: one number or one curve a picture."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.freeu.spectrum import diagonal_frequencies, high_end, relative_log_amplitude
from ldm.study.claims import half_width
from ldm.study.figures.figure import Material, Row
from ldm.study.pictures import Numbers, Pictures, energies, saturations

DISC = 0.1  # cycles a pixel, the radius of low frequencies in the paper's figure 3


def as_maps(pictures: Pictures) -> Tensor:
    """Pictures as maps (n, 3, H, W) in 0 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def picture_curves(pictures: Pictures) -> Numbers:
    """The relative log amplitude of each picture, (n, m). A picture and the same one darkened have the same.

    So its maps count from black: counted from middle grey, a mean may be next to nothing, its log anything.
    """
    # One at a time, as a spectrum is large.
    curves = [relative_log_amplitude(as_maps(picture[None])) for picture in pictures]
    return torch.cat(curves).numpy()


def frequencies_of(maps: NDArray[Any] | Tensor) -> Numbers:
    """The frequencies of the curves of maps (..., H, W), (m,), in radians a pixel."""
    return diagonal_frequencies(min(maps.shape[-2:])).numpy()


def picture_frequencies(pictures: Pictures) -> Numbers:
    """The frequencies of `picture_curves`, (m,), in radians a pixel."""
    return frequencies_of(pictures[..., 0])


def high_ends(curves: Numbers, side: int) -> Numbers:
    """The mean of curves (..., m), of maps of that side, over the frequencies from pi / 2 up."""
    return high_end(torch.from_numpy(curves), side).numpy()


def picture_high_ends(pictures: Pictures) -> Numbers:
    """The high end of each picture's relative log amplitude, (n,)."""
    return high_ends(picture_curves(pictures), min(pictures.shape[1:3]))


def high_shares(pictures: Pictures) -> Numbers:
    """The share of each picture's power about its mean that lies outside the disc, (n,)."""
    return energies(pictures, DISC)


def changes(pictures: Pictures, others: Pictures) -> Numbers:
    """The mean difference of each picture's pixels from another's, in grey levels of 255: (n,)."""
    each = [np.abs(one.astype(float) - other).mean() for one, other in zip(pictures, others, strict=True)]
    return np.array(each)


def mean_rows(frequencies: Numbers, curves: Numbers, name: str = "relative_log_amplitude") -> list[Row]:
    """The mean of curves (pairs, m) and half its 95 % interval, one row a frequency."""
    columns = zip(frequencies, curves.mean(0), half_width(curves), strict=True)
    return [
        {"frequency": float(f), name: float(mean), f"{name}_half": float(half)} for f, mean, half in columns
    ]


def measured(material: Material) -> list[Row]:
    """All of these numbers for every picture of every variant, the plain model's being called off."""
    off = material.all("off", "picture")
    rows: list[Row] = []
    for variant in material.kept:
        pictures = material.all(variant, "picture")
        numbers = {
            "high_end": picture_high_ends(pictures),
            "high_share": high_shares(pictures),
            "saturation": saturations(pictures),
            "change_from_off": changes(pictures, off),
        }
        for i, pair in enumerate(material.pairs):
            own = {name: float(values[i]) for name, values in numbers.items()}
            rows.append({"variant": variant, "prompt": pair.prompt, "seed": pair.seed, **own})
    return rows
