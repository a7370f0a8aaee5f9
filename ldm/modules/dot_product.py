"""Scaled dot-product attention: torch's own and, on a CPU, faster ones.

torch's own reads and writes each score several times between its products. In its place come tiles.c, in
bfloat16 with AMX, and vectors.c.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.onednn import HAS_AMX, is_fast
from ldm.modules.tiles import by_tiles
from ldm.modules.vectors import by_vectors


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d), as `scaled_dot_product_attention`.

    Scores are in float32. Training in mixed precision on a CPU takes all of it in float32: torch's own is six
    times as slow backwards in bfloat16.
    """
    batch, heads, _, d = q.shape
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    alike = k.shape == v.shape == (batch, heads, k.shape[2], d) and k.dtype == v.dtype
    if not (alike and is_fast(q, k)):
        return by_torch(q, k, v)
    made = by_tiles(q, k, v) if q.dtype == torch.bfloat16 and HAS_AMX else by_vectors(q, k, v)
    return by_torch(q, k, v) if made is None else made


def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention."""
    if q.device.type == "mps":
        # It scales what it has summed in half precision, where Stable Diffusion 2.1's products overflow.
        return F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v, scale=1.0)
    return F.scaled_dot_product_attention(q, k, v)
