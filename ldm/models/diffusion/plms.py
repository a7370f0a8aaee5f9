"""PLMS: DDIM steps along a multistep estimate of the noise (Liu et al., arXiv 2202.09778)."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from ldm.models.diffusion.ddim import ddim_step
from ldm.models.diffusion.sampling import Denoiser, Hold, Noise, Sampler
from ldm.modules.diffusionmodules.schedule import Level, ddim_timesteps


class PLMSSampler(Sampler):
    """The pseudo linear multistep method of order 4; the first step asks the network twice."""

    def timesteps(self, S: int) -> list[float]:
        return [*reversed(ddim_timesteps(S, self.model.num_timesteps))]

    def solve(
        self, eps: Denoiser, x: Tensor, path: list[Level], eta: float, noise: Noise, hold: Hold
    ) -> Iterator[tuple[Tensor, Tensor]]:
        recent: list[Tensor] = []
        for now, after in pairwise(path):
            x = hold(x, now)
            recent = [eps(x, now), *recent[:3]]
            match recent:
                case [e1]:
                    # Nothing to look back on: the mean of the noise here and where it leads (improved Euler).
                    trial, _ = ddim_step(x, e1, now, after)
                    estimate = (e1 + eps(hold(trial, after), after)) / 2
                case [e1, e2]:
                    estimate = (3 * e1 - e2) / 2
                case [e1, e2, e3]:
                    estimate = (23 * e1 - 16 * e2 + 5 * e3) / 12
                case [e1, e2, e3, e4]:
                    estimate = (55 * e1 - 59 * e2 + 37 * e3 - 9 * e4) / 24
            x, pred_x0 = ddim_step(x, estimate, now, after)
            yield x, pred_x0
