"""Checkpoints read with an eye to what they may cost.

What describes tensors is small beside the tensors: a header, a table of contents, a name. Python's objects
take some ten times the bytes that they are read from, so that a file in which the description is the larger
part would fill the memory with nothing.
"""

import mmap
from typing import Final

LEAST: Final = 1 << 20
SHARE: Final = 16


def most_described(size: int) -> int:
    """How many bytes of a file of this size may be one piece of description."""
    return max(LEAST, size // SHARE)


class Bounded:
    """A mapped file that hands out no more at once than a piece of description may have (else ValueError)."""

    def __init__(self, buffer: mmap.mmap):
        self.buffer = buffer
        self.seek, self.tell = buffer.seek, buffer.tell
        self.most = most_described(len(buffer))

    def read(self, count: int = -1) -> bytes:
        left = len(self.buffer) - self.buffer.tell()
        count = left if count < 0 else min(count, left)
        if count > self.most:
            raise ValueError(f"{count} bytes at once")
        return self.buffer.read(count)

    def readline(self) -> bytes:
        start = self.buffer.tell()
        end = self.buffer.find(b"\n", start, start + self.most)
        if end < 0:
            raise ValueError("a line without end")
        return self.buffer.read(end + 1 - start)
