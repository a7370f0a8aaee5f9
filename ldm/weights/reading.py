"""The tensors of a checkpoint, read without running anything in it."""

import os
import re
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.errors import InputError
from ldm.weights.bounded import most_described
from ldm.weights.torch_file import LEGACY_STARTS, ZIP_START, read_torch_file

# The numbers in safetensors that every torch has and can turn into those that a model computes in.
NUMBERS: Final = re.compile("BF16|F(16|32|64)|F8_E[45]M[23](FNUZ)?|[IU](8|16|32|64)|BOOL")


class Mapped(dict[str, Tensor]):
    """A state dict whose tensors are views of a mapped file that nothing writes to."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .ckpt, .pt or .pth file, known by its content and not by its name.

    The tensors are mapped from the file, in its own precision; nothing in the file is run. Raises InputError
    that says what the file is instead, or how it is damaged.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder: give the checkpoint in one file, .safetensors or .ckpt.")
    try:
        with Path(path).open("rb") as file:
            head = file.read(512)
        if head.startswith((ZIP_START, *LEGACY_STARTS)):
            return read_torch_file(Path(path))
        # Safetensors begins with the length of its header, below 100 MB in eight bytes, and the header's
        # brace.
        if head[4:9] != b"\0\0\0\0{":
            raise InputError(_nature(head))
        if int.from_bytes(head[:8], "little") > most_described(Path(path).stat().st_size):
            raise InputError("has a header that is long beside its tensors: download or save it again")
        if os.fsencode(path).decode(errors="replace") != str(path):
            raise InputError(
                "has a name that is not UTF-8, as safetensors needs it: rename the file or its folder"
            )
        with safe_open(path, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                kind = handle.get_slice(key).get_dtype()
                if not NUMBERS.fullmatch(kind):
                    raise InputError(
                        f"has the tensor {key[:99]!r} in {kind}, which is not read: "
                        "convert the file to float16 or float32"
                    )
            return Mapped({key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path} has a header that does not fit it ({error}): download it again") from None
    except InputError as error:
        raise InputError(f"{path} {error}") from None


def _nature(head: bytes) -> str:
    """What a file that begins so is, in words for whoever took it for a checkpoint."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "is empty: download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer in the place of the file: run git lfs pull, or download the file itself"
    if start.startswith(b"<"):
        return "is a web page (HTML) saved under this name: download the file that the page offers"
    if min(head) >= ord("\t"):
        return "is a text, not a checkpoint"
    if head.startswith(b"\x80"):
        return "is a pickle that torch.save did not write, and is not opened"
    return "is neither safetensors nor a file of torch.save, or was cut off"
