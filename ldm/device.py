"""The device to compute on, the precision it computes in, and how it says that its memory is too small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ldm.errors import InputError

# Precisions by the names that --precision has for them.
DTYPES = {"full": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}

# As MPS says it of all its memory and of one tensor, CUDA's libraries of theirs, Linux and Windows.
NO_ROOM = (
    "out of memory",
    "Invalid buffer size",
    "STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name, if it is there; "auto" is CUDA, then MPS, then the CPU. Raises InputError."""
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if device_count(kind)))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no kind of device called {name!r}: give auto, cuda, mps or cpu") from None
    if (device.index or 0) >= device_count(device.type):
        raise InputError(
            f"{name} is asked for, but torch finds no such device here: give --device auto or cpu"
        )
    return device


def device_count(kind: str) -> int:
    """How many devices of a kind ("cuda", "mps", "xpu", ...) torch can use here."""
    module = getattr(torch, kind, None)
    # CUDA counts a card even where its driver is too old for torch.
    if not getattr(module, "is_available", lambda: True)():
        return 0
    return getattr(module, "device_count", lambda: 0)()


def pick_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The precision of that name in `DTYPES`; by another, the one a device computes fast and safely in."""
    if precision in DTYPES:
        return DTYPES[precision]
    match device.type:
        case "cuda":
            # Earlier cards take bfloat16 too, but compute it by detours.
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        case "mps":
            return torch.float16
        case "cpu" if not (has_amx() or has_avx512_bf16()):
            return torch.float32  # one that does not multiply bfloat16 itself is slower in it
    return torch.bfloat16


def is_out_of_memory(fault: Exception) -> bool:
    """Whether a device's or the machine's memory had no room for a tensor.

    CUDA says so by an exception of its own, MPS and the CPU in words alone.
    """
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault) for words in NO_ROOM)


@contextmanager
def room_for_the_model(device: torch.device) -> Iterator[None]:
    """Raises InputError where what is done inside with a model finds too little of a device's memory."""
    try:
        yield
    except RuntimeError as fault:
        if not is_out_of_memory(fault):
            raise
        raise InputError(
            f"The memory of {device} does not hold the model: free it of other programs, "
            "or give --precision fp16 or --device cpu."
        ) from None


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 by tiles."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def has_avx512_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by vectors, about twice as fast as float32."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
