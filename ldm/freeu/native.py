"""C on a CPU: the libraries that installing this package makes of it, and the filter by the one in filter.c.

They are built where there is a C compiler. Elsewhere, and where more is asked of an operation than its result
(gradients, a graph), torch does the same.
"""

import ctypes
import zlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad


def built(source: Path, package: str, form: str = "") -> str | None:
    """The path of what setup.py made of a C file as it and its headers are now: its name has their checksum.

    `form` is one of those that setup.py makes of a file, if it makes several.
    """
    read = b"".join(it.read_bytes() for it in (source, *sorted(source.parent.glob("*.h"))))
    parts = source.stem, *([form] if form else []), f"{zlib.crc32(read):08x}"
    found = find_spec(f"{package}._{'_'.join(parts)}")
    return found.origin if found else None


def load(source: Path, package: str, form: str = "") -> ctypes.CDLL | None:
    """That library, if it is built and can be loaded: the OpenMP library that it needs may be gone."""
    path = built(source, package, form)
    try:
        return ctypes.CDLL(path) if path else None
    except OSError:
        return None


def is_plain(x: Tensor) -> bool:
    """Whether x is numbers in a CPU's memory, and nobody records what becomes of them."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
    )


def pointer(x: Tensor) -> ctypes.c_void_p:
    """Where a tensor's numbers begin, for a function of such a library."""
    return ctypes.c_void_p(x.data_ptr())


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
