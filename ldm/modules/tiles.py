"""Attention by the tiles (AMX) of an Intel processor, in tiles.c.

torch's own takes 1.1 to 2.8 times as long, by shape: it writes all scores and weights between its products,
and each exponential costs it a dozen steps. Installing this package builds the library where there is a C
compiler that knows the tiles; elsewhere attention is torch's.
"""

import ctypes
import zlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ldm.modules.onednn import HAS_AMX

SOURCE = Path(__file__).with_name("tiles.c")
WIDEST = 256  # numbers of a head: beyond, its keys and values leave a core's cache, and torch's is faster


def built() -> str | None:
    """The library that setup.py made of the C file as it is now: its name has the file's checksum."""
    found = find_spec(f"ldm.modules._tiles_{zlib.crc32(SOURCE.read_bytes()):08x}")
    return found.origin if found else None


def load() -> ctypes.CDLL | None:
    """The library, where it is built and the processor has tiles."""
    path = built() if HAS_AMX else None
    try:
        return ctypes.CDLL(path) if path else None
    except OSError:  # the OpenMP library that it was built with is gone
        return None


LIBRARY = load()


def by_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d) in bfloat16 on a CPU.

    None where that is left to torch: there is no library, a head is wide or empty, its numbers do not lie
    beside each other, or are not finite or too large.
    """
    batch, heads, n, d = q.shape
    m = k.shape[2]
    beside = all(x.stride(-1) == 1 for x in (q, k, v))
    if not (LIBRARY and beside and v.shape[-1] == d <= WIDEST and q.numel() and k.numel()):
        return None
    out = torch.empty(batch, n, heads, d, dtype=q.dtype).transpose(1, 2)
    strides = (stride for x in (q, k, v, out) for stride in x.stride()[:3])
    layout = (ctypes.c_long * 17)(batch, heads, n, m, d, *strides)
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (q, k, v, out))
    failed = LIBRARY.attention(*pointers, layout, ctypes.c_float(d**-0.5), torch.get_num_threads())
    return None if failed else out
