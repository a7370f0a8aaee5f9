"""DPM-Solver++ (Lu et al., arXiv 2211.01095): the multistep solver of order 2, "2M"."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch import Tensor

from ldm.models.diffusion.sampling import Denoiser, Hold, Noise, Sampler
from ldm.modules.diffusionmodules.schedule import Level, check_steps


class DPMSolverSampler(Sampler):
    """Algorithm 2 of the paper, on steps uniform in time; of fewer than 15 the last is of order 1."""

    def timesteps(self, S: int) -> list[float]:
        check_steps(S, self.model.num_timesteps)
        return np.linspace(self.model.num_timesteps - 1, 0, S + 1)[:-1].tolist()

    def solve(
        self, eps: Denoiser, x: Tensor, path: list[Level], eta: float, noise: Noise, hold: Hold
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The algorithm, with its x_theta as `x0` and its lambda as `log_snr`."""
        steps = list(pairwise(path))
        before: tuple[Level, Tensor] | None = None
        for index, (now, after) in enumerate(steps):
            x = hold(x, now)
            x0 = (x - now.sigma * eps(x, now)) / now.alpha
            h = after.log_snr - now.log_snr

            # Order 2 extrapolates x0 to the middle of the step from this estimate and the one before.
            D = x0
            ends_low = len(steps) < 15 and index == len(steps) - 1
            if before is not None and not ends_low:
                level, older = before
                r = (now.log_snr - level.log_snr) / h
                D = x0 + (x0 - older) / (2 * r)

            x = after.sigma / now.sigma * x - after.alpha * math.expm1(-h) * D
            before = now, x0
            yield x, x0
