"""Attention in float32 by a processor's vectors (AVX2), in vectors.c.

torch's own takes 1.0 to 1.4 times as long, by shape: it writes all scores and weights between its products.
Where there is AVX-512 this was not tried. Installing this package builds the library where there is a C
compiler; elsewhere attention is torch's.
"""

from pathlib import Path

from torch import Tensor

from ldm.freeu.native import load
from ldm.modules.heads import by_library
from ldm.modules.onednn import HAS_AVX512

WIDEST = 160  # numbers of a head: with more, torch's is faster
DOWN = 4  # of them are summed at a time

LIBRARY = None if HAS_AVX512 else load(Path(__file__).with_name("vectors.c"), "ldm.modules")


def by_vectors(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d) in float32 on a CPU.

    None where that is left to torch: a head is wide, or `by_library` leaves it.
    """
    d = q.shape[-1]
    return by_library(LIBRARY, q, k, v) if d <= WIDEST and d % DOWN == 0 else None
