"""A checkpoint read into the system's cache while its reader is still busy with something else."""

import ctypes
import os
from contextlib import suppress
from mmap import ACCESS_COPY, PAGESIZE, mmap
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from ldm.errors import InputError
from ldm.memory import installed
from ldm.weights.place import find_checkpoint

AT_ONCE = 2**17  # bytes: what Linux reads ahead by default; it leaves out what is beyond its limit


def read_ahead(name: str | Path | None) -> Thread | None:
    """Has the system read a checkpoint into its cache, in the background; the thread that asks for it.

    None where there is no such file, which its reader will say, and where a system takes no such advice. A
    file of more than half of the memory is left alone, as its end would push out its start.
    """
    if name is None or not hasattr(os, "posix_fadvise"):
        return None
    try:
        path = find_checkpoint(str(name))
    except InputError:
        return None
    thread = Thread(target=_ask, args=(path,), daemon=True)
    thread.start()
    return thread


def _ask(path: Path) -> None:
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > (installed() or 0) // 2:
            return
        # Each request takes Python from its importing thread for a while, so that none is made in vain.
        cached = _cached_pages(file)
        for start in range(0, size, AT_ONCE):
            first, last = start // PAGESIZE, -(-min(start + AT_ONCE, size) // PAGESIZE)
            if cached is None or cached.count(1, first, last) < last - first:
                os.posix_fadvise(file.fileno(), start, AT_ONCE, os.POSIX_FADV_WILLNEED)


def _cached_pages(file: BinaryIO) -> bytes | None:
    """A byte for each page of a file, 1 where the system's cache holds it.

    None where the system does not tell, as Linux does not of files that are another user's alone.
    """
    owner = os.fstat(file.fileno()).st_uid == os.geteuid()
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None or not (owner or os.access(file.name, os.W_OK)):
        return None
    with mmap(file.fileno(), 0, access=ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)  # to be gone before the mapping is
        resident = (ctypes.c_ubyte * -(-len(mapped) // PAGESIZE))()
        failed = mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), resident)
        del start
    return None if failed else bytes(resident)
