"""What this process keeps of its memory, and what it gives back."""

import ctypes
import gc
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names, in its malloc.h
MAPPED_ALONE = 32 * 2**20  # bytes, from which a map gets pages of its own; glibc takes no more
MOST_KEPT = 256 * 2**20  # bytes: what a step of Stable Diffusion's U-Net takes and frees again, and more


def forget(tensor: "Tensor") -> None:
    """Gives the memory of a tensor of a mapped file back to the system, which reads it again if asked for.

    Without this the whole file stays in memory beside the weights that were made of it.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    end = tensor.data_ptr() + tensor.nbytes
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = end // mmap.PAGESIZE * mmap.PAGESIZE - first  # pages that hold nothing else
    if whole > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


def installed() -> int | None:
    """How many bytes of memory this machine has; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_freed() -> None:
    """Lets glibc keep up to 256 MB of what is freed, for the next map of a network.

    By itself it gives maps back at once, and every layer waits for new pages; it learns better only in the
    course of the first steps.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_ALONE)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside, and has been before, lasts: Python never looks through it for garbage.

    For imports, which make hundreds of thousands of objects that stay. Searching them takes a seventh of the
    time of `import torch`, and as long again when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
