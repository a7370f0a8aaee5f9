"""Scaled dot-product attention: torch's own and, on a CPU, faster ones.

torch's own reads and writes each score several times between its products. In its place come, in bfloat16
with AMX, tiles.c and, without, two products by oneDNN: one ends in the exponential, one sums the weights too;
in float32, where there is no AVX-512, vectors.c.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.onednn import HAS_AMX, is_fast, product
from ldm.modules.tiles import by_tiles
from ldm.modules.vectors import by_vectors

MANY_SCORES = 2**20  # of a head: below, torch's own is as fast
VECTOR = 16  # numbers in float32 that a processor takes at once
BLOCK = (2048, 512)  # queries and keys whose weights stay in a processor's cache
FAR = 12  # below zero: there sigmoid and exponential differ by less than bfloat16 tells apart
ROUNDED = 2  # by which scores in bfloat16 may come nearer to zero than they should
DEEP = 70  # below zero: much further down, weights would be too small for a number


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d), as `scaled_dot_product_attention`.

    Scores are in float32. Training in mixed precision on a CPU takes all of it in float32: torch's own is six
    times as slow backwards in bfloat16.
    """
    batch, heads, n, d = q.shape
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    alike = k.shape == v.shape == (batch, heads, k.shape[2], d) and k.dtype == v.dtype
    if not (alike and is_fast(q, k)):
        return by_torch(q, k, v)
    if q.dtype == torch.float32 or HAS_AMX:
        made = by_vectors(q, k, v) if q.dtype == torch.float32 else by_tiles(q, k, v)
        return by_torch(q, k, v) if made is None else made
    if n * k.shape[2] < MANY_SCORES:
        return by_torch(q, k, v)
    out = torch.empty(batch, n, heads, v.shape[-1], dtype=q.dtype, device=q.device)
    for i in range(batch):
        for j in range(heads):
            head = q[i, j], k[i, j], v[i, j]
            made = by_sigmoid(*head)
            out[i, :, j] = F.scaled_dot_product_attention(*head) if made is None else made
    return out.transpose(1, 2)


def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention, on a whole number of a processor's vectors of keys.

    What is over it takes key by key: a text's 77 take longer than 80 of which the last count for nothing.
    """
    m = k.shape[2]
    missing = -m % VECTOR
    if q.device.type == "mps":
        # It scales what it has summed in half precision, where Stable Diffusion 2.1's products overflow.
        return F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v, scale=1.0)
    if not missing or not is_fast(q, k):
        return F.scaled_dot_product_attention(q, k, v)
    k, v = (F.pad(x, (0, 0, 0, missing)) for x in (k, v))  # (B, heads, M + missing, d)
    counts = torch.arange(m + missing, device=k.device) < m
    return F.scaled_dot_product_attention(q, k, v, attn_mask=counts[None])


def by_sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """Attention of a head, (N, d) on (M, d) in bfloat16; None where its scores are too far apart.

    Far below zero a sigmoid is an exponential, e^x / (1 + e^x), and oneDNN takes a sigmoid of what it
    multiplies before that is rounded or written. So each query's scores are shifted there, less the most that
    they can be, by two columns of the queries that meet columns of ones: the shift, and what is lost of it by
    rounding. What the shift does to the weights it does to their sum as well, which a column of ones beside
    the values brings.
    """
    # A query's scores are around the one with the keys' mean, and as far from it as both are long at most.
    scaled = (q.float() * q.shape[-1] ** -0.5).to(q.dtype)  # (N, d)
    queries, mean = scaled.float(), k.float().mean(0)  # (N, d), (d,)
    farthest = queries.norm(dim=1) * (k - mean).norm(dim=1).max()  # (N,)
    shift = queries @ mean + (farthest + math.log(len(k)) + FAR).clamp(max=DEEP)  # (N,)
    most = shift.to(q.dtype)
    shifts = torch.stack([-most, (most - shift).to(q.dtype)], dim=1)  # (N, 2)
    queries = torch.cat([scaled, shifts], dim=1)  # (N, d + 2)
    keys, values = F.pad(k, (0, 2), value=1), F.pad(v, (0, 1), value=1)  # (M, d + 2), (M, d + 1)
    rows, columns = BLOCK
    blocks = [
        (part, its.T.contiguous())
        for part, its in zip(keys.split(columns), values.split(columns), strict=True)
    ]
    made = []
    for some in queries.split(rows):
        out = torch.zeros(len(some), values.shape[1], device=q.device)
        for part, its in blocks:
            out += product(product(some, part, then="sigmoid"), its)
        out, total = out[:, :-1], out[:, -1:]  # (rows, d), (rows, 1)
        # Where the most that scores can be was cut off, they may have come too near to zero.
        if not total.max() < math.exp(ROUNDED - FAR):
            return None
        made.append((out / total).to(q.dtype))
    return torch.cat(made)
