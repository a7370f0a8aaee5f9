"""Attention by a library of C functions, which takes all heads in one call."""

import ctypes

import torch
from torch import Tensor

from ldm.freeu.native import is_plain, pointer


def by_library(library: ctypes.CDLL | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) on (B, heads, M, d), by a library's `attention`.

    None where that is left to torch: there is no library, a head is empty, its numbers do not lie beside each
    other, or the library says that it could not.
    """
    batch, heads, n, d = q.shape
    there = all(is_plain(x) and x.stride(-1) == 1 for x in (q, k, v))
    if not (library and there and v.shape[-1] == d and q.numel() and k.numel()):
        return None
    out = torch.empty(batch, n, heads, d, dtype=q.dtype, device=q.device).transpose(1, 2)
    strides = (stride for x in (q, k, v, out) for stride in x.stride()[:3])
    layout = (ctypes.c_long * 17)(batch, heads, n, k.shape[2], d, *strides)
    pointers = (pointer(x) for x in (q, k, v, out))
    failed = library.attention(*pointers, layout, ctypes.c_float(d**-0.5), torch.get_num_threads())
    return None if failed else out
