"""FreeU's filter of the skip at inference on a CPU, by filter.c."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ldm.freeu.native import is_plain, load, pointer

WIDEST = 2**14  # positions of a map's row or column, for whose sums there is room on a thread's stack

LIBRARY = load(Path(__file__).with_name("filter.c"), "ldm.freeu")


def has_filter(x: Tensor) -> bool:
    """Whether `add_low_frequencies` is there for these maps, (B, C, H, W).

    It is for contiguous ones and those with channels last, and for some of the channels of either.
    """
    if LIBRARY is None or x.dtype not in (torch.float32, torch.bfloat16) or not is_plain(x):
        return False
    _, channel, row, position = x.stride()
    if max(x.shape[2:]) > WIDEST:
        return False
    return (channel == 1 or position == 1) and row == x.shape[3] * position


def add_low_frequencies(x: Tensor, gain: float | Tensor) -> None:
    """Adds to maps, (B, C, H, W) of side 3 or more, `gain` times their low frequencies at threshold 1.

    `gain` is one number or one for each sample, (B, 1, 1) or, for all, (1, 1, 1).
    """
    assert LIBRARY is not None
    batch, channels, height, width = x.shape
    last = x.stride(1) == 1
    maps = (ctypes.c_long * 6)(batch, channels, height, width, x.stride(0), x.stride(3 if last else 1))
    gains = gain.expand(batch, 1, 1).flatten().tolist() if isinstance(gain, Tensor) else batch * [gain]
    threads = torch.get_num_threads()
    is_bfloat16 = x.dtype == torch.bfloat16
    LIBRARY.filter(pointer(x), maps, (ctypes.c_float * batch)(*gains), last, is_bfloat16, threads)
