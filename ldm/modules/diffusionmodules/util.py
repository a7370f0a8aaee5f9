"""What the U-Net is told of time."""

import math

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids of the timesteps, (B,) to (B, dim) in float32: cosines first, then sines.

    Frequencies fall geometrically from 1 to 1 / 10,000 over dim // 2 steps; an odd dim ends in a zero.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(10_000) * steps / half)
    angles = timesteps[:, None].float() * frequencies[None]  # (B, half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 2 half)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
