"""How much noise there is when: the training betas, and the levels a sampler walks down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError


@dataclass(frozen=True)
class Level:
    """One noise level, at which a latent is x = alpha x_0 + sigma eps, with alpha² + sigma² = 1."""

    t: float  # in training steps, from 0 (nearly the picture) to T - 1 (nearly noise)
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """Half the log of the signal-to-noise ratio: the lambda of the DPM-Solver papers."""
        return math.log(self.alpha / self.sigma)


def linear_betas(timesteps: int, linear_start: float, linear_end: float) -> Tensor:
    """The variances added at each training step, linear in their square root: float64, (timesteps,).

    This is what latent diffusion's configs mean by `linear_start` and `linear_end`.
    """
    return torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64) ** 2


def levels(alphas_cumprod: Tensor, times: Sequence[float]) -> list[Level]:
    """The noise levels at `times`, in float64, from alphas_cumprod (T,) of the training steps.

    Between two training steps log alpha is linear in time, as in DPM-Solver's discrete schedule. The device
    that alphas_cumprod is on need not know float64 (MPS does not).
    """
    log_alphas = 0.5 * np.log(alphas_cumprod.cpu().double().numpy())
    alphas = np.exp(np.interp(times, np.arange(len(log_alphas)), log_alphas)).tolist()
    return [Level(t, alpha, math.sqrt(1 - alpha**2)) for t, alpha in zip(times, alphas, strict=True)]


def check_steps(S: int, T: int) -> None:
    """Raises InputError unless a model of T training steps can be sampled in S steps."""
    if not 1 <= S <= T:
        raise InputError(f"{S} sampling steps asked for, but this model takes 1 to {T}.")


def ddim_timesteps(S: int, T: int) -> list[int]:
    """The training steps DDIM visits, ascending: every (T // S)-th, shifted by one.

    As in the original, an S that does not divide T gives more than S of them. Where the shift would lead past
    the table (S = 3 or 1000 of T = 1000), the last training step stands in, so that sampling still
    begins at full noise.

    Raises InputError where S is not between 1 and T.
    """
    check_steps(S, T)
    return [min(t + 1, T - 1) for t in range(0, T, T // S)]


def ddim_noise(now: Level, after: Level, eta: float) -> float:
    """The standard deviation of the fresh noise in a DDIM step (arXiv 2010.02502, eq. 16).

    eta = 0 is the deterministic DDIM and eta = 1 the ancestral DDPM.
    """
    return eta * after.sigma / now.sigma * math.sqrt(1 - (now.alpha / after.alpha) ** 2)
