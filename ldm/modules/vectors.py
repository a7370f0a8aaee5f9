"""Attention by a processor's vectors, in vectors.c.

torch's own takes 1.4 to 2.5 times as long in float32 and 2.4 to 5 times in bfloat16 (Zen 5, by shape): it
writes all scores and weights between its products.
"""

from pathlib import Path

import torch
from torch import Tensor

from ldm.modules.cpu_vectors import libraries
from ldm.modules.heads import by_library
from ldm.modules.onednn import HAS_AVX512

DOWN = {torch.float32: 4, torch.bfloat16: 8}  # numbers of a head that are summed at a time
WIDEST = 2**31 if HAS_AVX512 else 160  # such numbers: with more, torch's is faster than AVX2

SOURCE = Path(__file__).with_name("vectors.c")
LIBRARIES = libraries(SOURCE)


def by_vectors(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d) in one precision on a CPU.

    None where that is left to torch: there is no library for the precision, a head is wide or uneven, or
    `by_library` leaves it.
    """
    library, d = LIBRARIES.get(q.dtype), q.shape[-1]
    return by_library(library, q, k, v) if library and d <= WIDEST and d % DOWN[q.dtype] == 0 else None
