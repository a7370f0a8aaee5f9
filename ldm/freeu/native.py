"""C on a CPU: the libraries that installing this package makes of it.

They are built where there is a C compiler. Elsewhere, and where more is asked of an operation than its result
(gradients, a graph), torch does the same.
"""

import ctypes
import re
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
    parts = source.stem, *([form] if form else []), f"{zlib.crc32(_with_headers(source)):08x}"
    found = find_spec(f"{package}._{'_'.join(parts)}")
    return found.origin if found else None


def _with_headers(source: Path) -> bytes:
    """A file of C, and behind it the headers of this package that it includes."""
    own = source.read_bytes()
    names = re.findall(rb'^#include "(.+)"', own, re.MULTILINE)
    return own + b"".join(_with_headers(source.parent / name.decode()) for name in names)


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
        and not x.is_neg()  # whose numbers lie there with the other sign
    )


def pointer(x: Tensor) -> ctypes.c_void_p:
    """Where a tensor's numbers begin, for a function of such a library."""
    return ctypes.c_void_p(x.data_ptr())
