"""Attention by a processor's vectors, in vectors.c: float32 by AVX2 or AVX-512, bfloat16 by AVX-512.

torch's own takes up to 1.5 times as long in float32 and up to 2.7 times in bfloat16, by shape: it writes all
scores and weights between its products. Processors with AMX have tiles.py for bfloat16; float32 was not tried
there. Installing this package builds the libraries where there is a C compiler; elsewhere attention is
torch's.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ldm.device import has_avx512_bf16
from ldm.freeu.native import load
from ldm.modules.heads import by_library
from ldm.modules.onednn import CPU_VECTORS, HAS_AMX, HAS_AVX512

DOWN = 4  # numbers of a head that are summed at a time
WIDEST = 2**31 if HAS_AVX512 else 160  # such numbers: with more, torch's is faster than AVX2


def libraries() -> dict[torch.dtype, ctypes.CDLL | None]:
    """Those that this processor is faster with, by the precision that they are for."""
    if HAS_AMX:
        return {}
    source = Path(__file__).with_name("vectors.c")
    made = {torch.float32: load(source, "ldm.modules", CPU_VECTORS)}
    if HAS_AVX512 and has_avx512_bf16():
        made[torch.bfloat16] = load(source, "ldm.modules", "avx512_bf16")
    return made


LIBRARIES = libraries()


def by_vectors(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d) in one precision on a CPU.

    None where that is left to torch: there is no library for the precision, a head is wide or uneven, or
    `by_library` leaves it.
    """
    d = q.shape[-1]
    return by_library(LIBRARIES.get(q.dtype), q, k, v) if d <= WIDEST and d % DOWN == 0 else None
