"""A checkpoint cast to bfloat16 while its reader is still importing torch.

An import keeps one core busy and leaves the others idle, for as long as it takes one to cast half of Stable
Diffusion's weights. A process of its own does that, as two threads of Python would wait for each other, and
with numpy, which is imported soon, into memory that it shares with the reader. What it has not come to is
left to the reader.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ldm.errors import InputError
from ldm.weights.bounded import most_described
from ldm.weights.place import find_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

AT_ONCE: Final = 2**17  # numbers, which stay in a core's cache
LEAST: Final = 2**28  # bytes of a file that is worth a process
GPUS: Final = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and anyone's under Windows
CPU_INFO: Final = Path("/proc/cpuinfo")
AMX, AVX512 = "amx_tile", "avx512_bf16"  # of which either makes a processor fast in bfloat16

_begun: dict[Path, "CastAhead"] = {}


def cast_ahead(name: str | Path | None, device: str, precision: str) -> None:
    """Begins to cast a checkpoint, where its networks are likely to compute in bfloat16 on the CPU.

    Call it before anything starts a thread. What comes of it is for `put_cast`.

    Args:
        name: a file, or a bare name looked up in `checkpoints/`; if there is none its reader will say so.
        device: as the scripts take it: auto, cuda, mps or cpu.
        precision: as the scripts take it: auto, full, autocast, fp16 or bf16.
    """
    if name is None or not expects_bfloat16(device, precision) or len(os.sched_getaffinity(0)) == 1:
        return
    with suppress(InputError, OSError):
        path = find_checkpoint(str(name))
        if path.stat().st_size >= LEAST:
            _begun[path] = CastAhead(path, channels_last=AMX in _abilities())


def put_cast(path: Path, tensors: dict[str, "Tensor"], wanted: bool) -> None:
    """Ends what was begun for this file, if anything; if `wanted`, casts take the place of its tensors."""
    if (ahead := _begun.pop(path, None)) is not None:
        ahead.stop()
        if wanted and ahead.version == _version(path):
            tensors |= ahead.casts(tensors)


def expects_bfloat16(device: str, precision: str) -> bool:
    """Whether networks will compute in bfloat16 on the CPU, as far as can be told without torch."""
    on_cpu = device == "cpu" or (device == "auto" and not any(map(os.path.exists, GPUS)))
    in_bfloat16 = on_cpu and precision in ("auto", "autocast", "bf16")
    return in_bfloat16 and not {AMX, AVX512}.isdisjoint(_abilities())


class CastAhead:
    """A process that casts a .safetensors file's float32 tensors, one after the other as they lie in it.

    The shared memory begins with a page that tells how many bytes of the file's tensors are cast, and whether
    the process shall stop. Behind it, the cast of what is at byte i of the tensors is at i / 2.

    Kernels come to lie as `fill` would lay them: channels last for AMX, otherwise as the file has them.
    """

    def __init__(self, path: Path, channels_last: bool):
        self.version = _version(path)
        self.channels_last = channels_last
        shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE + path.stat().st_size // 2))
        self.state, self.results = shared[:16].cast("Q"), shared[mmap.PAGESIZE :]
        self.reader = os.getpid()
        self.process = os.fork()
        if self.process == 0:
            try:
                self.cast(path)
            finally:
                os._exit(0)  # without a word, as the reader will say what is wrong with the file

    def cast(self, path: Path) -> None:
        """What the process does, until it is told to stop, its reader is gone, or something is odd."""
        import numpy as np

        with path.open("rb", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > most_described(path.stat().st_size):
                return
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            room = np.empty((2, AT_ONCE), np.uint32)
            for name, it in sorted(header.items(), key=lambda entry: entry[1]["data_offsets"]):
                start, end = it["data_offsets"]
                if name.startswith("model_ema."):
                    return
                if it["dtype"] == "F32" and start < end:
                    file.seek(8 + length + start)
                    out = np.frombuffer(self.results, np.uint16, (end - start) // 4, start // 2)
                    kernels = self.channels_last and len(it["shape"]) == 4
                    for part in _parts(out, it["shape"] if kernels else [out.size, 1]):
                        if self.state[1] or os.getppid() != self.reader or not _cast(file, part, room):
                            return
                self.state[0] = end

    def stop(self) -> None:
        """Ends the process and waits for it."""
        self.state[1] = 1
        with suppress(ChildProcessError):
            os.waitpid(self.process, 0)

    def casts(self, tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """What is cast of these tensors, which are the file's, mapped, in bfloat16."""
        import torch

        first = min((tensor.data_ptr() for tensor in tensors.values() if tensor.numel()), default=0)
        cast = {}
        for key, tensor in tensors.items():
            start = tensor.data_ptr() - first
            if tensor.dtype == torch.float32 and tensor.numel() and start + tensor.nbytes <= self.state[0]:
                flat = torch.frombuffer(
                    self.results, dtype=torch.bfloat16, count=tensor.numel(), offset=start // 2
                )
                if tensor.ndim == 4 and self.channels_last:
                    out, into, height, width = tensor.shape
                    cast[key] = flat.view(out, height, width, into).permute(0, 3, 1, 2)  # (out, in, h, w)
                else:
                    cast[key] = flat.view(tensor.shape)
        return cast


def _abilities() -> list[str]:
    """What Linux says that the processor can, in its words; on other systems nothing."""
    if not CPU_INFO.exists():
        return []
    with CPU_INFO.open() as file:
        return file.read(2**13).partition("flags")[2].partition("\n")[0].split()


def _version(path: Path) -> tuple[int, ...]:
    """What differs where one file has taken another's place."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _parts(out: "np.ndarray", shape: list[int]) -> Iterator["np.ndarray"]:
    """The parts of a tensor's cast that are made at once, (n, h * w, in) of shape (out, in, h, w)."""
    rows, into, *side = shape
    whole = out.reshape(rows, math.prod(side), into)
    at_once = AT_ONCE // whole[0].size
    for i in range(0, rows, at_once):
        yield whole[i : i + at_once]


def _cast(file: FileIO, out: "np.ndarray", room: "np.ndarray") -> bool:
    """Casts the next numbers of a file, (n, in, h * w) float32, to (n, h * w, in) bfloat16.

    Whether it could: not where the file is at its end, and not what is not a number. Asks for no new memory,
    for which the system would take longer than the cast does: `room` is (2, numbers at once).
    """
    import numpy as np

    bits, rounded = room[:, : out.size]
    if file.readinto(bits) < bits.nbytes or np.isnan(bits.view(np.float32).max()):
        return False
    # To the nearer of two, and where both are as near to the even one: what is cut off is carried from a half
    # on, and at just a half if the last bit that is kept is odd.
    np.right_shift(bits, 16, out=rounded)
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    upper = rounded.view(np.uint16)[1::2]
    out[...] = upper.reshape(len(out), out.shape[2], out.shape[1]).swapaxes(1, 2)
    return True
