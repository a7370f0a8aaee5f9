"""What is measured in pictures themselves, (..., H, W, 3) of bytes each, without any network."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ldm.freeu.spectrum import band_split

Numbers = NDArray[np.floating[Any]]
Pictures = NDArray[np.uint8]

QUARTER = 0.25  # cycles a pixel, which is 0.5 pi radians
THUMBNAIL = 16  # pixels of a side


def energies(pictures: Pictures, radius: float = QUARTER) -> Numbers:
    """The share of each picture's power about its mean that lies above `radius` cycles a pixel: (...).

    Frequencies are taken by their distance from zero in the plane, in red, green and blue alike; the picture
    is taken for one tile of a periodic one. A picture of one colour has no power: its share is 0.
    """
    shares = []
    for picture in pictures.reshape(-1, *pictures.shape[-3:]):  # one at a time, as its spectrum is large
        maps = torch.from_numpy(picture).permute(2, 0, 1).float() / 255  # (3, H, W)
        maps = maps - maps.mean((1, 2), keepdim=True)
        _, high = band_split(maps, radius)
        shares.append(high.square().sum() / maps.square().sum().clamp(min=1e-9))
    return torch.stack(shares).numpy().reshape(pictures.shape[:-3])


def saturations(pictures: Pictures) -> Numbers:
    """The mean of (max - min) / max of red, green and blue over each picture's pixels: (...). Black has 0."""
    means = []
    for picture in pictures.reshape(-1, *pictures.shape[-3:]):  # one at a time, as it grows eightfold
        highest, lowest = picture.max(-1).astype(np.float64), picture.min(-1)  # (H, W)
        means.append(((highest - lowest) / np.maximum(highest, 1)).mean())
    return np.array(means).reshape(pictures.shape[:-3])


def clipped_shares(pictures: Pictures) -> Numbers:
    """The share of each picture's pixels in which red, green or blue is 0 or 255: (...)."""
    return ((pictures == 0) | (pictures == 255)).any(-1).mean((-2, -1))


def diversities(pictures: Pictures) -> Numbers:
    """How far each picture is from the others of its prompt, in grey levels: (P, S, H, W, 3) to (P, S).

    The distance of two pictures is the root mean square difference of their thumbnails of 16x16 pixels, so it
    tells other layouts and colours and not other details. NaN where a prompt has one picture.
    """
    prompts, seeds = pictures.shape[:2]
    thumbnails = []
    for picture in pictures.reshape(-1, *pictures.shape[-3:]):  # one at a time, as in `saturations`
        maps = torch.from_numpy(picture).movedim(-1, 0).float()  # (3, H, W)
        thumbnails.append(F.adaptive_avg_pool2d(maps, THUMBNAIL))
    small = torch.stack(thumbnails).reshape(prompts, seeds, -1).numpy()  # (P, S, F)
    apart = np.sqrt(np.square(small[:, :, None] - small[:, None]).mean(-1))  # (P, S, S)
    return apart.sum(2) / (seeds - 1) if seeds > 1 else np.full((prompts, seeds), np.nan)
