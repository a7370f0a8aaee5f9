"""Files of torch.save opcode by opcode, with any claim in them."""

import pickle
import zipfile
from pathlib import Path

import torch

NUMBERS = torch.arange(12, dtype=torch.float32)
STORAGE = NUMBERS.numpy().tobytes()


def literal(value: object) -> bytes:
    """The opcodes that push a value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def a_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_global(module: str, name: str) -> bytes:
    return literal(module) + literal(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(kind: str, key: object = "0") -> bytes:
    """What torch.save writes for a storage of twelve."""
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    told = literal("storage") + a_global(module, kind) + literal(key) + literal("cpu") + literal(12)
    return b"(" + told + b"tQ"


def tensor(
    shape: tuple = (3, 4),
    stride: tuple = (4, 1),
    offset: object = 0,
    key: object = "0",
    kind: str = "FloatStorage",
) -> bytes:
    """What torch.save writes for a tensor, with any claim in it."""
    return call(
        a_global("torch._utils", "_rebuild_tensor_v2"),
        storage(kind, key), literal(offset), literal(shape), literal(stride), literal(False),
        call(a_global("collections", "OrderedDict")),
    )  # fmt: skip


def binary(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


def state_dict(**values: bytes) -> bytes:
    items = b"".join(literal(key) + value for key, value in values.items())
    return b"\x80\x04}(" + items + b"u."


def archive(path: Path, stream: bytes, root: str = "archive/", **entries: bytes) -> Path:
    """A file in the layout of torch.save, around this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{root}data.pkl", stream)
        for name, content in ({"data/0": STORAGE} | entries).items():
            file.writestr(f"{root}{name}", content)
    return path
