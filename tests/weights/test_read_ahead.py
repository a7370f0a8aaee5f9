"""A file read into the system's cache ahead of its reader."""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.weights import read_ahead as module
from ldm.weights.read_ahead import read_ahead

SIZE = 40 * 2**20 + 5000

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")


def share_in_cache(path: Path) -> float:
    """How much of a file the system's cache holds, as mincore counts its pages."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        told = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), told
        )
        del start
    assert not failed
    return sum(page & 1 for page in told) / len(told)


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A file of which nothing is in the cache."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if share_in_cache(path) > 0.1:
        pytest.skip("the file system keeps all files in memory")
    return path


def read(path: Path, until: Callable[[float], bool] = lambda _: False) -> float:
    """How much of it is in the cache at most two seconds after it was asked for."""
    thread = read_ahead(path)
    assert thread is not None
    thread.join()
    deadline = time.monotonic() + 2
    while not until(share := share_in_cache(path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return share


def test_a_file_comes_into_the_cache_whole(on_disk: Path) -> None:
    assert read(on_disk, until=lambda share: share == 1) == 1


def test_what_the_cache_holds_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        if module._cached_pages(file) is None:
            pytest.skip("the system does not tell what is in its cache")
    asked: list[int] = []
    monkeypatch.setattr(module.os, "posix_fadvise", lambda _, start, *__: asked.append(start))
    read(path, until=lambda _: True)
    assert not asked


def test_another_user_s_file_of_which_the_system_does_not_tell_is_asked_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(2**18 + 5))
    monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    asked: list[int] = []
    monkeypatch.setattr(module.os, "posix_fadvise", lambda _, start, *__: asked.append(start))
    read(path, until=lambda _: True)
    assert asked == [0, 2**17, 2**18]


def test_a_file_of_more_than_half_of_the_memory_is_left_on_the_disk(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PHYS_PAGES": 2 * SIZE // 4096 - 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(module.os, "sysconf", pages.__getitem__)
    assert read(on_disk) < 0.1


def test_what_cannot_be_read_is_left_to_its_reader_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[object] = []
    monkeypatch.setattr("threading.excepthook", raised.append)
    assert read_ahead(tmp_path / "missing") is read_ahead(None) is None
    thread = read_ahead(tmp_path)
    assert thread is not None
    thread.join()
    assert not raised


def test_it_is_asked_for_before_torch_is_imported() -> None:
    check = "import sys, ldm.weights.read_ahead; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], check=True)
