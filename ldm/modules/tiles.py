"""Attention by the tiles (AMX) of an Intel processor, in tiles.c.

torch's own takes 1.1 to 2.8 times as long, by shape: it writes all scores and weights between its products,
and each exponential costs it a dozen steps. Installing this package builds the library where there is a C
compiler that knows the tiles; elsewhere attention is torch's.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ldm.freeu.native import is_plain, load, pointer
from ldm.modules.onednn import HAS_AMX

WIDEST = 256  # numbers of a head: beyond, its keys and values leave a core's cache, and torch's is faster

LIBRARY = load(Path(__file__).with_name("tiles.c"), "ldm.modules") if HAS_AMX else None


def by_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d) in bfloat16 on a CPU.

    None where that is left to torch: there is no library, a head is wide or empty, its numbers do not lie
    beside each other, or are not finite or too large.
    """
    batch, heads, n, d = q.shape
    m = k.shape[2]
    there = all(is_plain(x) and x.stride(-1) == 1 for x in (q, k, v))
    if not (LIBRARY and there and v.shape[-1] == d <= WIDEST and q.numel() and k.numel()):
        return None
    out = torch.empty(batch, n, heads, d, dtype=q.dtype).transpose(1, 2)
    strides = (stride for x in (q, k, v, out) for stride in x.stride()[:3])
    layout = (ctypes.c_long * 17)(batch, heads, n, m, d, *strides)
    pointers = (pointer(x) for x in (q, k, v, out))
    failed = LIBRARY.attention(*pointers, layout, ctypes.c_float(d**-0.5), torch.get_num_threads())
    return None if failed else out
