"""The tensors of a file of torch.save, mapped from the file, without running anything that it holds.

Two layouts exist. Since torch 1.6 the file is a zip archive, uncompressed, with one pickle and one entry a
storage. Before, it was four pickles, a fifth with the storages' keys, and the storages one after the other.
In both, the pickle says of each tensor which storage it views and how, and these claims are held against the
bytes that are there.
"""

import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.weights.bounded import Bounded
from ldm.weights.pickle_reader import INERT, Inert, Meanings, read_pickle

ZIP_START: Final = b"PK\x03\x04"
# The first pickle of the older layout: protocol 2, torch's magic number as a ten-byte integer, stop.
MAGIC: Final = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
LEGACY_START: Final = b"\x80\x02" + MAGIC
# Whoever saves may ask for a later protocol, which from the fourth on puts a frame around the number.
FRAMED: Final = b"\x95" + len(MAGIC).to_bytes(8, "little") + MAGIC
LEGACY_STARTS: Final = (LEGACY_START, b"\x80\x03" + MAGIC, b"\x80\x04" + FRAMED, b"\x80\x05" + FRAMED)

DAMAGED: Final = "is damaged or was cut off: download or save it again"


class Storage(NamedTuple):
    """A row of numbers in the file, by its key there."""

    key: str
    dtype: torch.dtype


class Unread(NamedTuple):
    """Takes the place of a storage whose numbers are of a type that is not read."""

    type: str


class Claim(NamedTuple):
    """A tensor as a pickle describes it; what the fields hold has not been checked."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    metadata: Any = None


class Extent(NamedTuple):
    """Where a storage lies in the file, in bytes."""

    start: int
    size: int


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The state dict in the file, each tensor a view of the mapped file (copy on write: it is never written).

    Optimizer states, callbacks and whatever else lies beside the state dict are left out. Raises InputError
    with the reason, less the file's name.
    """
    with path.open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tree, locate = _read_zip(buffer) if buffer[:4] == ZIP_START else _read_legacy(buffer)
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    claims = {key: it for key, it in tree.items() if isinstance(it, Claim)} if isinstance(tree, dict) else {}
    if not claims:
        raise InputError("holds no state dict: save one with torch.save(model.state_dict(), ...)")

    rows = _Rows(buffer, locate)
    return {key: _view(rows, key, claim) for key, claim in claims.items()}


class _Rows(dict[Storage, Tensor]):
    """The storages that were asked for, each with all its whole numbers in one dimension."""

    def __init__(self, buffer: mmap.mmap, locate: Callable[[str], Extent]):
        self.buffer, self.locate = buffer, locate
        self.copied = 0  # bytes

    def __missing__(self, storage: Storage) -> Tensor:
        start, size = self.locate(storage.key)
        dtype = storage.dtype
        count = size // dtype.itemsize
        if count == 0:
            row = torch.empty(0, dtype=dtype)
        else:
            row = torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=start)
        # Compiled loops may take it for granted that a number starts at a multiple of its width.
        if start % dtype.itemsize:
            self.copied += size
            if self.copied > len(self.buffer):
                raise InputError("has more in its storages than in the file, as they overlap: save it again")
            row = row.clone()
        self[storage] = row
        return row


def _view(rows: _Rows, name: str, claim: Claim) -> Tensor:
    """The claimed tensor, once the claim is seen to stay inside its storage."""
    storage, offset, shape, stride, metadata = claim
    if isinstance(storage, Unread):
        raise InputError(
            f"has the tensor {name[:99]!r} in {storage.type}, which is not read: "
            "convert the file to float16 or float32"
        )
    described = isinstance(storage, Storage) and type(shape) is type(stride) is tuple
    if not described or len(shape) != len(stride) or len(shape) > 16:
        raise InputError(f"describes the tensor {name[:99]!r} in a way that torch.save never does")
    counts = all(type(number) is int and 0 <= number < 2**63 for number in (offset, *shape, *stride))
    if not counts or math.prod(max(length, 1) for length in shape) >= 2**63:
        raise InputError(f"gives the tensor {name[:99]!r} a negative or impossible size")
    if isinstance(metadata, dict) and metadata.get("neg"):
        raise InputError(f"keeps the tensor {name[:99]!r} with its sign apart: save it after resolve_neg()")

    if 0 in shape:
        return torch.empty(shape, dtype=storage.dtype)
    row = rows[storage]

    # A stride of zero stays inside however large the shape is, so the count of numbers is bounded as well.
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if last < len(row) < math.prod(shape) and 0 in stride:
        raise InputError(
            f"repeats the numbers of the tensor {name[:99]!r} (expand): save it after .contiguous()"
        )
    if last >= len(row) or math.prod(shape) > len(row):
        raise InputError(
            f"is cut off or lies: the tensor {name[:99]!r} claims more numbers than its storage has"
        )
    return row.as_strided(shape, stride, offset)


def _read_zip(buffer: mmap.mmap) -> tuple[Any, Callable[[str], Extent]]:
    try:
        with zipfile.ZipFile(cast(IO[bytes], Bounded(buffer))) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error):
        raise InputError(DAMAGED) from None
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if not pickles:
        raise InputError(
            "is a zip archive that torch.save did not write; if a checkpoint is packed in it, unpack it"
        )
    root = pickles[0].removesuffix("data.pkl")

    def find(name: str) -> Extent:
        if root + name not in entries:
            raise InputError(f"lacks the part {name[:99]!r} of itself: download or save it again")
        return _entry_extent(entries[root + name], buffer)

    if root + "byteorder" in entries:
        order = find("byteorder")
        _refuse_big_endian(buffer[order.start : order.start + order.size] == b"big")
    buffer.seek(find("data.pkl").start)
    tree = read_pickle(buffer, MEANINGS, _storage)
    return tree, lambda key: find(f"data/{key}")


def _entry_extent(entry: zipfile.ZipInfo, buffer: mmap.mmap) -> Extent:
    """Where the content of a zip's entry lies: behind a header of 30 bytes, a name and an extra field."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise InputError("is a compressed zip archive: unpack it and pack it again uncompressed (zip -0 -r)")
    at = entry.header_offset
    header = buffer[at : at + 30] if at >= 0 else b""
    if len(header) < 30 or not header.startswith(ZIP_START):
        raise InputError(DAMAGED)
    name_length, extra_length = struct.unpack("<HH", header[26:])
    extent = Extent(at + 30 + name_length + extra_length, entry.file_size)
    if extent.start + extent.size > len(buffer):
        raise InputError(DAMAGED)
    return extent


def _read_legacy(buffer: mmap.mmap) -> tuple[Any, Callable[[str], Extent]]:
    storages: dict[str, Storage] = {}

    def persistent(identity: object) -> object:
        storage = _storage(identity)
        if isinstance(storage, Storage):
            storages[storage.key] = storage
        return storage

    # Magic number, version of the layout, the machine it was written on, the object, the keys of its
    # storages.
    buffer.seek(0)
    _, _, machine, tree, keys = (read_pickle(buffer, MEANINGS, persistent) for _ in range(5))
    _refuse_big_endian(isinstance(machine, dict) and machine.get("little_endian") is False)

    extents: dict[str, Extent] = {}
    for key in keys if isinstance(keys, list) else ():
        length = buffer.read(8)
        if type(key) is not str or key not in storages or len(length) < 8:
            raise InputError(DAMAGED)
        extent = Extent(buffer.tell(), int.from_bytes(length, "little") * storages[key].dtype.itemsize)
        if extent.start + extent.size > len(buffer):
            raise InputError(DAMAGED)
        extents[key] = extent
        buffer.seek(extent.size, 1)

    def find(key: str) -> Extent:
        if key not in extents:
            raise InputError(DAMAGED)
        return extents[key]

    return tree, find


def _refuse_big_endian(is_big: bool) -> None:
    if is_big:
        raise InputError("was written on a big-endian machine: load it there and save it as safetensors")


def _storage(identity: object) -> object:
    """From torch's persistent id: ("storage", type, key, device, count), and in the older layout a view."""
    if type(identity) is not tuple or len(identity) < 5 or identity[0] != "storage":
        return INERT
    dtype, key, view = identity[1], identity[2], identity[5:]
    if not isinstance(dtype, torch.dtype) or type(key) is not str:
        return INERT
    if view not in ((), (None,)):
        raise InputError(
            "holds views of storages, as torch before 0.4 wrote them: load and save it with a later torch"
        )
    return Storage(key, dtype)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Claim:
    storage, offset, shape, stride, *others = arguments
    return Claim(storage, offset, shape, stride, *others[2:3])


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> Claim:
    """For types without a storage class of their own: the storage counts bytes, the type stands apart."""
    storage, offset, shape, stride, _, _, dtype, *others = arguments
    if isinstance(storage, Storage):
        known = isinstance(dtype, torch.dtype)
        storage = Storage(storage.key, dtype) if known else dtype if isinstance(dtype, Unread) else UNKNOWN
    return Claim(storage, offset, shape, stride, *others[:1])


def _rebuild_from_type(arguments: tuple[Any, ...]) -> object:
    """For tensors that were given attributes, which say nothing about numbers."""
    rebuild, kind, inner, *_ = arguments
    known = rebuild in (_rebuild_tensor, _rebuild_tensor_v3) and kind is PLAIN and type(inner) is tuple
    return rebuild(inner) if known else INERT


UNKNOWN: Final = Unread("a type unknown here")
PLAIN: Final = Inert()  # the type of tensors that mean what their storages hold

# All that a pickle can mean. Whatever else it names stays inert.
MEANINGS: Final[Meanings] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda arguments: arguments[0],
    ("torch._utils", "_rebuild_parameter_with_state"): lambda arguments: arguments[0],
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): PLAIN,
    ("collections", "OrderedDict"): lambda _: {},
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch", "float8_e4m3fn"): torch.float8_e4m3fn,
    ("torch", "float8_e5m2"): torch.float8_e5m2,
    ("torch", "float8_e4m3fnuz"): torch.float8_e4m3fnuz,
    ("torch", "float8_e5m2fnuz"): torch.float8_e5m2fnuz,
    ("torch", "uint16"): torch.uint16,
    ("torch", "uint32"): torch.uint32,
    ("torch", "uint64"): torch.uint64,
    # Not in the oldest torch allowed, hence by name.
    ("torch", "float8_e8m0fnu"): Unread("float8_e8m0fnu"),
    ("torch", "float4_e2m1fn_x2"): Unread("float4_e2m1fn_x2"),
}
