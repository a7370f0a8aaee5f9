"""The device to compute on, and the precision it computes in."""

import torch

from ldm.errors import InputError


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name, if it is there; "auto" is CUDA, then MPS, then the CPU. Raises InputError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no kind of device called {name!r}: give auto, cuda, mps or cpu") from None
    if not there.get(device.type, True):
        raise InputError(
            f"{name} is asked for, but torch finds no such device here: give --device auto or cpu"
        )
    return device


def pick_dtype(device: torch.device) -> torch.dtype:
    """The precision that a device computes fast and safely in."""
    match device.type:
        case "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        case "mps":
            return torch.float16
    # On a CPU that does not multiply bfloat16 itself it is slower than float32.
    return torch.bfloat16 if has_amx() or has_avx512_bf16() else torch.float32


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 by tiles."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def has_avx512_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by vectors, about twice as fast as float32."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
