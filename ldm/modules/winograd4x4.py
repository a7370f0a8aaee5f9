"""A 3x3 convolution in float32 with 1/4 of its multiplications, after Winograd, its sums in C.

Four by four numbers that come out, a tile, see six by six that go in. Sums of these, times sums of the
kernel, make 36 products where 144 were; F(4x4, 3x3) in Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks" (CVPR 2016), from whom the letters below are. In bfloat16 such sums lose too much, and torch
takes as long for them as they save: for these there is winograd.py, with smaller tiles.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ldm.freeu.native import is_plain, load, pointer
from ldm.memory import MAPPED_ALONE
from ldm.modules.onednn import product

LANES = 8  # channels that are summed at a time
MOST = (MAPPED_ALONE - 2**20) // 4  # numbers of sums at a time, whose memory is kept for the next ones

LIBRARY = load(Path(__file__).with_name("winograd4x4.c"), "ldm.modules")


def spares_layout(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether large convolutions are done here, where contiguous kernels are as good as channels last."""
    return LIBRARY is not None and device.type == "cpu" and dtype == torch.float32


def has_winograd4x4(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `winograd4x4` is there for these maps and kernels."""
    if LIBRARY is None or len(weight) % LANES or weight.shape[1] % LANES:
        return False
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
        return False
    return all(it.dtype == torch.float32 and is_plain(it.detach()) for it in (x, weight, bias))


def winograd4x4(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a convolution that keeps height and width makes of x, (B, C, H, W) to (B, out, H, W).

    Maps are channels last; the kernels, (out, C, 3, 3), are so or contiguous.
    """
    assert LIBRARY is not None
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, height, width, len(weight)).permute(0, 3, 1, 2)
    _, into, _, apart = weight.stride()
    threads = torch.get_num_threads()

    def work(first: int, tiles: int, some: int = 0) -> ctypes.Array:
        return (ctypes.c_long * 9)(height, width, channels, len(weight), into, apart, first, tiles, some)

    all_tiles = batch * -(-height // 4) * -(-width // 4)
    for first, tiles in parts(all_tiles, MOST // (36 * channels)):
        v = x.new_empty(36, tiles, channels)
        LIBRARY.sum_input(pointer(x), work(first, tiles), pointer(v), threads)
        for begin, some in parts(len(weight), MOST // (36 * channels)):
            now = work(first, tiles, some)
            u = x.new_empty(36, some, channels)
            LIBRARY.sum_kernels(pointer(weight[begin:]), now, pointer(u), threads)
            m = [product(*pair) for pair in zip(v, u, strict=True)]  # 36 of (tiles, some)
            products = (ctypes.c_void_p * 36)(*(it.data_ptr() for it in m))
            LIBRARY.sum_products(products, pointer(bias[begin:]), now, pointer(y[:, begin:]), threads)
    return y


def parts(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Where each part of so many begins, and how many it has: whole lanes, at most `most` or one."""
    number = -(-count // max(most // LANES * LANES, LANES))
    size = -(-count // (number * LANES)) * LANES
    return ((begin, min(size, count - begin)) for begin in range(0, count, size))
