"""Reading a file takes no more than twice its size, whatever it claims."""

import ctypes
import gc
import os
import pickle
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from ldm.weights.torch_file import ZIP_START
from tests.hostile.files import a_global, archive, state_dict, tensor

MEGABYTES = 16
LARGE = MEGABYTES << 20


def zip_of_one_storage(path: Path, stream: bytes, names: int) -> Path:
    """Many names for one large storage, at an odd place, so that mapping it is not enough."""
    for padding in (b"", b"."):
        content = bytearray(archive(path, stream + padding, **{"data/0": bytes(LARGE)}).read_bytes())
        if content.index(b"archive/data/0") % 2:
            break
    start = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entries = [bytes(content[start:end])]
    first = content.index(b"archive/data/0", start) - 46
    for k in range(names):
        name = f"archive/data/n{k}".encode()
        entry = bytearray(content[first : first + 46])
        entry[28:30] = len(name).to_bytes(2, "little")
        entries.append(bytes(entry) + name)
    table = b"".join(entries)
    tail = bytearray(content[end:])
    tail[8:12] = (names + 2).to_bytes(2, "little") * 2
    tail[12:16] = len(table).to_bytes(4, "little")
    path.write_bytes(content[:start] + table + tail)
    return path


def many_entries(path: Path) -> Path:
    """A table of contents as large as the file."""
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2
    entry = b"PK\x01\x02" + bytes(24) + b"\1\0" + bytes(16) + b"a"
    table = entry * (LARGE // len(entry))
    path.write_bytes(
        ZIP_START + bytes(26) + table + end + len(table).to_bytes(4, "little") + b"\x1e\0\0\0" + b"\0\0"
    )
    return path


def many_tensors(path: Path) -> Path:
    """A safetensors header as large as the file, of tensors without numbers."""
    entry = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ("{" + ",".join(entry % k for k in range(LARGE // 60)) + "}").encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


KINDS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short")
GLUTTONS: dict[str, Callable[[Path], Path]] = {
    "one storage under a hundred names": lambda path: zip_of_one_storage(
        path, state_dict(**{f"t{k}": tensor((1,), (1,), key=f"n{k}") for k in range(100)}), 100
    ),
    "one storage in seven types": lambda path: zip_of_one_storage(
        path, state_dict(**{kind: tensor((1,), (1,), kind=f"{kind}Storage") for kind in KINDS}), 0
    ),
    "one storage in thousands of views": lambda path: zip_of_one_storage(
        path, state_dict(**{f"t{k}": tensor((LARGE // 4,), (1,)) for k in range(4000)}), 0
    ),
    "table of contents": many_entries,
    "tensors of nothing": many_tensors,
    "dicts": lambda path: archive(path, b"\x80\x02" + b"}" * LARGE + b"."),
    "lists in a memo": lambda path: archive(path, b"\x80\x04" + b"]\x94" * (LARGE // 2) + b"."),
    "marks": lambda path: archive(path, b"\x80\x02" + b"(" * LARGE + b"."),
    "calls": lambda path: archive(
        path,
        b"\x80\x02" + a_global("collections", "OrderedDict") + b"q\0)q\1" + b"h\0h\1R" * (LARGE // 5) + b".",
    ),
    "short texts": lambda path: archive(
        path, b"\x80\x04" + b"".join(b"\x8c\4%04x" % (k % 65536) for k in range(LARGE // 6)) + b"."
    ),
    "one text with a wide letter": lambda path: archive(
        path, b"\x80\x04X" + (LARGE).to_bytes(4, "little") + b"a" * (LARGE - 4) + "🐞".encode() + b"."
    ),
    "many texts with a wide letter": lambda path: archive(
        path, (b"X" + (1 << 19).to_bytes(4, "little") + b"a" * ((1 << 19) - 4) + "🐞".encode()) * 48 + b"."
    ),
    "a line": lambda path: archive(path, b"\x80\x02V" + b"a" * LARGE + b"\n."),
}


def memory_taken(work: Callable[[], object], first: Callable[[], object] = lambda: None) -> int:
    """How many bytes a process that does this work grows by at its largest, files that it maps among them.

    What it does `first` does not count, nor do the pages of the libraries that this touches.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        first()
        # Memory that earlier tests have left free would hide what is taken; nor does their peak count.
        gc.collect()
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        os.write(writer, b"%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    taken = int(os.read(reader, 99)) * (1 if sys.platform == "darwin" else 1024)
    os.close(reader)
    os.close(writer)
    return taken


def test_what_a_plain_unpickler_takes_is_seen(tmp_path: Path) -> None:
    stream = GLUTTONS["short texts"](tmp_path / "a.ckpt").read_bytes()
    stream = stream[stream.index(b"\x80\x04") :]
    held = bytearray(LARGE)  # what lies free when the work begins does not count
    del held
    assert memory_taken(lambda: pickle.loads(stream)) > 5 * LARGE
    assert memory_taken(lambda: None) < 1 << 20


@pytest.mark.parametrize("glutton", GLUTTONS)
def test_no_more_than_twice_the_file_is_taken(glutton: str, tmp_path: Path) -> None:
    path = GLUTTONS[glutton](tmp_path / "a.ckpt")
    small = archive(tmp_path / "small.ckpt", state_dict(w=tensor()))

    def read_and_use(path: Path) -> None:
        with suppress(InputError):
            tensors = read_tensors(path)
            sum(it.sum() for it in list(tensors.values())[:9] if it.is_floating_point())

    # Twice the file, and what the first 200,000 steps of a pickle may leave whatever its size.
    taken = memory_taken(lambda: read_and_use(path), first=lambda: read_and_use(small))
    assert taken <= 2 * path.stat().st_size + (24 << 20)
