"""Small files that would grow large, or never end."""

import time
import tracemalloc
from pathlib import Path

import pytest

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from tests.hostile.files import a_global, archive, literal

BOMBS = {
    "memo place 4294967295": b"\x80\x02}" + b"r\xff\xff\xff\xff" + b".",
    "text memo place": b"\x80\x02}" + b"p" + b"9" * 4000 + b"\n.",
    "bytes that claim 4 EB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f" + b".",
    "bytearray that claims 4 EB": b"\x80\x05\x96" + b"\xff" * 7 + b"\x3f" + b".",
    "text that claims 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "number that claims 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame that claims 4 EB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f" + b"N.",
    "decimal of a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "doubled tuples as a key": b"\x80\x02})" + b"2\x86" * 200 + b"Ns.",
    "doubled tuples": b"\x80\x02)" + b"2\x86" * 30_000 + b".",
    "names joined from long text": b"\x80\x04" + literal("a" * 100_000) + b"2" * 2000 + b"\x93" * 1000 + b".",
    "deep nesting": b"\x80\x02)" + b"\x85" * 30_000 + b".",
    "calls in calls": b"\x80\x02"
    + a_global("torch._utils", "_rebuild_parameter") * 10_000
    + b")"
    + b"\x85R" * 10_000
    + b".",
    "a loop": b"\x80\x02]q\x00h\x00a.",
    "marks": b"\x80\x02" + b"(" * 30_000 + b".",
    "nothing on the stack": b"\x80\x02.",
    "more taken than there is": b"\x80\x02R.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_neither_memory_nor_time(bomb: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", BOMBS[bomb])
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(InputError):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 40 << 20


def test_an_endless_pickle_is_given_up(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", b"\x80\x02" + b"}" * 3_000_000 + b".")
    with pytest.raises(InputError, match="steps"):
        read_tensors(path)
