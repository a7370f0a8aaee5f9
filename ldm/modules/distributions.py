"""The posterior that the autoencoder's encoder describes."""

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """A Gaussian with a diagonal covariance, from `moments` (B, 2C, H, W): its mean, then its log variance.

    The log variance is held between -30 and 20, as in latent diffusion.
    """

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)  # (B, C, H, W) each
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, (B, C, H, W); its noise is made on the CPU, so that a seed means one on every device."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32, device="cpu")
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The most probable latent, (B, C, H, W)."""
        return self.mean

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, in nats a sample: (B,)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))
