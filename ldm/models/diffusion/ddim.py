"""DDIM: denoising diffusion implicit models (Song et al., arXiv 2010.02502)."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldm.config.neutral import takes_only
from ldm.errors import InputError
from ldm.models.diffusion.sampling import Denoiser, Hold, Noise, Sampler
from ldm.modules.diffusionmodules.schedule import Level, ddim_noise, ddim_timesteps


def ddim_step(x: Tensor, eps: Tensor, now: Level, after: Level, fresh: float = 0.0) -> tuple[Tensor, Tensor]:
    """One step of DDIM (eq. 12), less its fresh noise of standard deviation `fresh`; returns (x, pred_x0)."""
    pred_x0 = (x - now.sigma * eps) / now.alpha
    direction = math.sqrt(after.sigma**2 - fresh**2) * eps
    return after.alpha * pred_x0 + direction, pred_x0


class DDIMSampler(Sampler):
    """The deterministic DDIM at eta = 0, DDPM's ancestral sampling at eta = 1."""

    max_eta = 1.0

    def timesteps(self, S: int) -> list[float]:
        return [*reversed(ddim_timesteps(S, self.model.num_timesteps))]

    def solve(
        self, eps: Denoiser, x: Tensor, path: list[Level], eta: float, noise: Noise, hold: Hold
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for now, after in pairwise(path):
            fresh = ddim_noise(now, after, eta)
            x = hold(x, now)
            x, pred_x0 = ddim_step(x, eps(x, now), now, after, fresh)
            if fresh > 0:
                x = x + fresh * noise(x.shape).to(x)
            yield x, pred_x0

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> None:
        """Fixes the steps that `stochastic_encode` and `decode` count, as image-to-image scripts expect."""
        takes_only(self, "uniform", ddim_discretize=ddim_discretize)
        self.ddim_timesteps = ddim_timesteps(ddim_num_steps, self.model.num_timesteps)
        self.ddim_eta = ddim_eta

    @torch.no_grad()
    def stochastic_encode(
        self, x0: Tensor, t: Tensor, use_original_steps: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """Latents x0 (b, c, h, w), as noisy as at the fixed steps numbered t (b,); 0 is the cleanest.

        Raises InputError where there is no such step.
        """
        takes_only(
            self, False, "the model's q_sample takes training steps", use_original_steps=use_original_steps
        )
        fixed = len(self.ddim_timesteps)
        for step in t.tolist():
            if not 0 <= step < fixed:
                raise InputError(
                    f"t holds {step}, but make_schedule fixed {fixed} steps: give 0 to {fixed - 1}, "
                    "which is image to image of a strength below 1."
                )
        z = torch.randn(x0.shape) if noise is None else noise
        alphas_cumprod = self.model.alphas_cumprod.cpu()[self.ddim_timesteps]
        a = alphas_cumprod[t.cpu()].to(x0)[:, None, None, None]  # (b, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * z.to(x0)

    def decode(
        self,
        x_latent: Tensor,
        cond: Any,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        use_original_steps: bool = False,
        callback: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Denoises x_latent (b, c, h, w) through the `t_start` cleanest of the fixed steps.

        `callback(i)` hears of each.
        """
        takes_only(self, False, "make_schedule fixes the steps", use_original_steps=use_original_steps)
        eps = self.guided(cond, unconditional_conditioning, unconditional_guidance_scale, count=len(x_latent))
        x = x_latent
        for step in self.walk(self.ddim_timesteps[:t_start][::-1], x_latent, eps, self.ddim_eta):
            x = step.x
            if callback:
                callback(step.index)
        return x
