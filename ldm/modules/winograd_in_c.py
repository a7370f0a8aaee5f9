"""A 3x3 convolution with fewer multiplications, after Winograd, in C.

In float32 four by four numbers that come out, a tile, see six by six that go in. Sums of these, times sums of
the kernel, make 36 products where 144 were; F(4x4, 3x3) in Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks" (CVPR 2016), from whom the letters below are. In bfloat16 such sums lose too much: there
tiles are of two by two, as in winograd.py, and 16 products are made where 36 were, their sums in float32.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ldm.freeu.native import is_plain, pointer
from ldm.memory import MAPPED_ALONE
from ldm.modules.cpu_vectors import libraries
from ldm.modules.onednn import HAS_AVX512

CORE = {torch.float32: 4, torch.bfloat16: 2}  # a tile's side
LANES = 16 if HAS_AVX512 else 8  # of which channels going in are whole numbers, ...
PANEL = 2 * LANES  # ... and of these those coming out
LINE = 16  # numbers that lie behind each plane of those that are made of tiles and of kernels
MOST = (MAPPED_ALONE - 2**20) // 4  # such numbers of tiles or kernels, whose memory is kept for the next ones
CACHED = 6 * 2**18  # such numbers that stay in a processor's cache
FEW_TILES = 32  # up to so many, kernels take longest: each panel of them meets all tiles as it is made, ...
SOME = 64  # ... so many channels going in at a time

SOURCE = Path(__file__).with_name("winograd.c")
LIBRARIES = libraries(SOURCE)


def convolves_in_c(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether large convolutions are done here, where contiguous kernels are as good as channels last."""
    return dtype in LIBRARIES and device.type == "cpu"


def has_winograd(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `winograd_in_c` is there for these maps and kernels."""
    if x.dtype not in LIBRARIES or x.ndim != 4 or x.shape[1] != weight.shape[1]:
        return False
    if len(weight) % PANEL or weight.shape[1] % LANES:
        return False
    if not all(it.dtype == x.dtype and is_plain(it.detach()) for it in (x, weight, bias)):
        return False
    laid_out = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return laid_out and bias.is_contiguous()


def winograd_in_c(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    above: int = 0,
    below: int = 0,
    y: Tensor | None = None,
) -> Tensor:
    """What a convolution that keeps height and width makes of x, (B, C, H, W) to (B, out, H, W).

    Maps are channels last; the kernels, (out, C, 3, 3), are so or contiguous. The first `above` and
    the last `below` rows of x are a halo: read, but nothing is made of them. The rest is written to `y`,
    where that is given.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    height -= above + below
    if y is None:
        y = x.new_empty(batch, height, width, len(weight)).permute(0, 3, 1, 2)
    _, into, _, apart = weight.stride()
    core = CORE[x.dtype]
    planes = (core + 2) ** 2
    all_tiles = batch * -(-height // core) * -(-width // core)
    library, threads = LIBRARIES[x.dtype], torch.get_num_threads()
    if all_tiles <= FEW_TILES:
        convolve, hands, tiles, deep, out = library.convolve_few, threads, all_tiles, SOME, PANEL
    else:
        # Of tiles and kernels, the fewer are kept while the others pass by in parts that stay in the cache.
        kept = part(min(all_tiles, len(weight)), MOST // (planes * channels))
        passing = part(max(all_tiles, len(weight)), CACHED // (planes * max(channels, kept)))
        tiles, out = (kept, passing) if all_tiles < len(weight) else (passing, kept)
        convolve, hands, deep = library.convolve, 1, channels

    def room(hands: int, count: int, dtype: torch.dtype) -> Tensor:
        """Memory for so many numbers in each plane, for each hand."""
        return torch.empty(hands * planes * (count + LINE), dtype=dtype, device=x.device)

    v = room(1, tiles * channels, x.dtype)
    u, m = room(hands, out * deep, x.dtype), room(hands, tiles * out, torch.float)
    sides = height, width, above, below, channels, len(weight)
    work = (ctypes.c_long * 11)(*sides, into, apart, all_tiles, tiles, out)
    given, made = [pointer(it) for it in (x, weight, bias)], [pointer(it) for it in (v, u, m, y)]
    convolve(*given, work, *made, threads)
    return y


def part(count: int, most: int) -> int:
    """How many of so many to take at a time: as equal parts as there are, of whole panels."""
    number = -(-count // max(most // PANEL * PANEL, PANEL))
    return -(-count // (number * PANEL)) * PANEL
