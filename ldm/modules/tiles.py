"""Attention by the tiles (AMX) of an Intel processor, in tiles.c.

torch's own takes 1.1 to 2.8 times as long, by shape: it writes all scores and weights between its products,
and each exponential costs it a dozen steps. Installing this package builds the library where there is a C
compiler that knows the tiles; elsewhere attention is torch's.
"""

from pathlib import Path

from torch import Tensor

from ldm.freeu.native import load
from ldm.modules.heads import by_library
from ldm.modules.onednn import HAS_AMX

WIDEST = 256  # numbers of a head: beyond, its keys and values leave a core's cache, and torch's is faster

LIBRARY = load(Path(__file__).with_name("tiles.c"), "ldm.modules") if HAS_AMX else None


def by_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d) in bfloat16 on a CPU.

    None where that is left to torch: a head is wide, its numbers are not finite or too large, or `by_library`
    leaves it.
    """
    return by_library(LIBRARY, q, k, v) if q.shape[-1] <= WIDEST else None
