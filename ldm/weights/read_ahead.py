"""A checkpoint read into the system's cache while its reader is still busy with something else."""

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

from ldm.errors import InputError
from ldm.weights.place import find_checkpoint

AT_ONCE = 2**17  # bytes: what Linux reads ahead by default; it leaves out what is beyond its limit
STRETCH = 2**24  # bytes: taken to be in the cache where the first ones are


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
    with suppress(OSError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
            return
        # Each request takes Python from its importing thread for a while, so that none is made in vain.
        for stretch in range(0, size, STRETCH):
            if not _is_cached(file.fileno(), stretch):
                for start in range(stretch, min(stretch + STRETCH, size), AT_ONCE):
                    os.posix_fadvise(file.fileno(), start, AT_ONCE, os.POSIX_FADV_WILLNEED)


def _is_cached(file: int, at: int) -> bool:
    """Whether what is there can be read without waiting; no, where the system does not tell.

    Linux begins to read what it is asked for so, and a fast disk may have a few bytes at once.
    """
    try:
        return os.preadv(file, [bytearray(AT_ONCE)], at, os.RWF_NOWAIT) > AT_ONCE // 2
    except (OSError, AttributeError):
        return False
