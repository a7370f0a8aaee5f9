"""A 3x3 convolution in float32 with 1/4 of its multiplications, after Winograd, in C.

Four by four numbers that come out, a tile, see six by six that go in. Sums of these, times sums of the
kernel, make 36 products where 144 were; F(4x4, 3x3) in Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks" (CVPR 2016), from whom the letters below are. In bfloat16 such sums lose too much: for these
there is winograd.py, with smaller tiles. On processors with AMX this was not tried.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ldm.freeu.native import is_plain, load, pointer
from ldm.memory import MAPPED_ALONE
from ldm.modules.onednn import CPU_VECTORS, HAS_AMX, HAS_AVX512

LANES = 16 if HAS_AVX512 else 8  # of which channels going in are whole numbers, ...
PANEL = 2 * LANES  # ... and of these those coming out
PLANES, LINE = 36, 16  # of numbers that are made of tiles and of kernels, and what lies behind each
MOST = (MAPPED_ALONE - 2**20) // 4  # such numbers of tiles or kernels, whose memory is kept for the next ones
CACHED = 6 * 2**18  # such numbers that stay in a processor's cache

SOURCE = Path(__file__).with_name("winograd4x4.c")
LIBRARY = None if HAS_AMX else load(SOURCE, "ldm.modules", CPU_VECTORS)


def spares_layout(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether large convolutions are done here, where contiguous kernels are as good as channels last."""
    return LIBRARY is not None and device.type == "cpu" and dtype == torch.float32


def has_winograd4x4(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `winograd4x4` is there for these maps and kernels."""
    if LIBRARY is None or len(weight) % PANEL or weight.shape[1] % LANES:
        return False
    if not all(it.dtype == torch.float32 and is_plain(it.detach()) for it in (x, weight, bias)):
        return False
    laid_out = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return laid_out and bias.is_contiguous()


def winograd4x4(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a convolution that keeps height and width makes of x, (B, C, H, W) to (B, out, H, W).

    Maps are channels last; the kernels, (out, C, 3, 3), are so or contiguous.
    """
    assert LIBRARY is not None
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, height, width, len(weight)).permute(0, 3, 1, 2)
    _, into, _, apart = weight.stride()
    all_tiles = batch * -(-height // 4) * -(-width // 4)
    # Of tiles and kernels, the fewer are kept while the others pass by in parts that stay in the cache.
    kept = part(min(all_tiles, len(weight)), MOST // (PLANES * channels))
    passing = part(max(all_tiles, len(weight)), CACHED // (PLANES * max(channels, kept)))
    tiles, out = (kept, passing) if all_tiles < len(weight) else (passing, kept)
    v, u, m = (
        torch.empty(PLANES * (count + LINE), dtype=x.dtype, device=x.device)
        for count in (tiles * channels, out * channels, tiles * out)
    )
    work = (ctypes.c_long * 9)(height, width, channels, len(weight), into, apart, all_tiles, tiles, out)
    given, made = [pointer(it) for it in (x, weight, bias)], [pointer(it) for it in (v, u, m, y)]
    LIBRARY.convolve(*given, work, *made, torch.get_num_threads())
    return y


def part(count: int, most: int) -> int:
    """How many of so many to take at a time: as equal parts as there are, of whole panels."""
    number = -(-count // max(most // PANEL * PANEL, PANEL))
    return -(-count // (number * PANEL)) * PANEL
