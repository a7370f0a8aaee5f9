"""Models of a config, with the weights of a checkpoint."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from ldm.config.reading import load_config, resolved
from ldm.config.trust import trusting
from ldm.device import pick_device, pick_dtype, room_for_the_model
from ldm.errors import InputError, warn
from ldm.memory import forget, keep_freed
from ldm.modules.winograd_in_c import convolves_in_c
from ldm.noise_schedule import other_schedule
from ldm.util import instantiate_from_config
from ldm.weights.cast_ahead import put_cast
from ldm.weights.misfit import foreign, likely_nature, misfit
from ldm.weights.names import NEW_WORD, as_kernels, is_needless, renamed
from ldm.weights.place import find_checkpoint
from ldm.weights.reading import Mapped, read_tensors

MOST_LAYERS: Final = 20_000  # Stable Diffusion 2 has about 2,500
AT_ONCE: Final = 2**21  # numbers of kernels that are cast ahead of being laid out, and stay in a cache


def load_model(
    config: str | Path | DictConfig,
    ckpt: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: Literal["auto"] | torch.dtype = "auto",
    overrides: Iterable[str] = (),
    download: bool = False,
    trust_config: bool = False,
) -> nn.Module:
    """The model of a config with the weights of a checkpoint, in eval mode.

    Args:
        config: a file, a bare name looked up in `configs/`, or a config already loaded.
        ckpt: a file, or a bare name looked up in `checkpoints/`; by default the config's own `checkpoint`.
        device: "auto" is CUDA, then MPS, then the CPU.
        dtype: of the weights; "auto" is what the device does fast and safely.
        overrides: `key=value` entries that change the config.
        download: fetch a known checkpoint that is not there. Nothing is fetched otherwise.
        trust_config: build what the config names from any package, and so run its code.

    Raises:
        InputError: something is not there, damaged, or does not fit the config or the device's memory, or the
            config names a class that only a trusted one may.
    """
    config = resolved(config, overrides) if isinstance(config, DictConfig) else load_config(config, overrides)
    if "model" not in config:
        raise InputError("The config has no `model:` section.")
    name = ckpt or config.get("checkpoint")
    if not name:
        raise InputError("The config names no checkpoint: give one with --ckpt.")

    path = find_checkpoint(str(name), download)
    device = pick_device(device)
    dtype = pick_dtype(device) if dtype == "auto" else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype!r}: give 'auto' or a precision of torch's, such as torch.float16.")
    tensors = read_tensors(path)
    with trusting(trust_config):
        model = build_on_meta(config.model)
    # Casts of plain weights would stay in memory beside the averages that take their place.
    averaged = getattr(model, "use_ema", False) and any("model_ema." in key for key in tensors)
    put_cast(path, tensors, wanted=dtype == torch.bfloat16 and device.type == "cpu" and not averaged)
    with room_for_the_model(device):
        try:
            fill(model, tensors, dtype, device)
        except InputError as error:
            raise InputError(f"{path} {error}") from None
    if device.type == "cpu":
        keep_freed()
    return model.eval()


def build_on_meta(config: Mapping[str, Any]) -> nn.Module:
    """The model of a `target` and its `params`, with shapes and no weights: no time and no memory spent.

    Raises InputError, also where the config asks for more layers than any model of this kind has.
    """
    count = 0

    def register(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_LAYERS:
            raise InputError(f"The config asks for over {MOST_LAYERS:,} layers: lower its numbers of blocks.")

    hook = register_module_module_registration_hook(register)
    try:
        with torch.device("meta"):
            return instantiate_from_config(config)
    finally:
        hook.remove()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    """Puts a state dict in the place of a model's meta tensors, in this precision and on this device.

    Each tensor is cast and moved by itself, and assigned, so that there is never a second copy of the model.
    Weights that need no change stay views of the mapped file. Raises InputError that lists the keys that are
    missing, unexpected, of another shape or in whole numbers. What a module has computed by itself (not on
    meta) may be missing. What it says is `unread` may be missing or of any shape and kind, and is then zero.
    A model that says `use_ema` takes the averaged weights that there are.
    """
    slots = model.state_dict()
    given = _matched(model, slots, tensors)

    # Convolutions run fastest with a position's channels side by side. Where kernels may as well lie as the
    # file has them they are not copied: that takes longer than all the rest.
    last = device.type in ("cpu", "cuda") and not convolves_in_c(device, dtype)
    weights: dict[str, Tensor] = {}
    for key, tensor in given.items():
        slot = slots[key]
        lies_anew = last and tensor.ndim == 4
        layout = torch.channels_last if lies_anew else torch.preserve_format
        kind = dtype if slot.is_floating_point() else slot.dtype
        if lies_anew and device.type == "cpu" and kind != tensor.dtype:
            weights[key] = _laid_out(tensor, kind)
        else:
            weights[key] = tensor.to(device, kind, memory_format=layout)
        if isinstance(tensors, Mapped) and weights[key].data_ptr() != tensor.data_ptr():
            forget(tensor)
    model.load_state_dict(weights, strict=False, assign=True)

    hollow = [name for name, it in chain(model.named_parameters(), model.named_buffers()) if it.is_meta]
    if hollow:
        raise RuntimeError(f"left on meta, to be made under torch.device('cpu'): {', '.join(hollow)}")
    model.to(device)


def _matched(
    model: nn.Module, slots: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What goes into a model's slots, by its names. Raises InputError where tensors do not fit them."""
    named = renamed(tensors, slots, averaged=getattr(model, "use_ema", False))
    given = {key: as_kernels(key, it) for key, it in named.items() if not is_needless(key, slots)}
    unread = _unread(model)
    given |= {
        key: torch.zeros_like(slot, device="cpu")
        for key, slot in slots.items()
        if key.startswith(unread) and not _fits(given.get(key), slot)
    }
    if faults := misfit(slots, given):
        if what := foreign(named):
            raise InputError(f"does not fit the config: {what}")
        raise InputError("\n  ".join(["does not fit the config" + likely_nature(slots, named), *faults]))
    if caveat := other_schedule(slots, named):
        warn(caveat)
    if words := [repr(key.removeprefix(NEW_WORD)[:40]) for key in named if key.startswith(NEW_WORD)]:
        warn(f"the checkpoint's words of a textual inversion are not taken: {', '.join(words[:9])}")
    return given


def _laid_out(kernels: Tensor, kind: torch.dtype) -> Tensor:
    """Kernels, (out, in, h, w), in this precision and channels last.

    Some at a time, cast ahead of being laid out, as torch takes longer for both at once.
    """
    made = torch.empty_like(kernels, dtype=kind, memory_format=torch.channels_last)
    at_once = 1 + AT_ONCE // (1 + kernels[:1].numel())
    for part, out in zip(kernels.split(at_once), made.split(at_once), strict=True):
        out.copy_(part.to(kind))
    return made


def fingerprint(model: nn.Module) -> str:
    """A short name for a model's weights, by the first numbers of each: other weights, another name."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        numbers = weight.detach().flatten()[:256].float().cpu().numpy()
        digest.update(name.encode() + numbers.tobytes())
    return digest.hexdigest()[:16]


def _fits(tensor: Tensor | None, slot: Tensor) -> bool:
    """Whether there is a tensor, of real numbers in the shape of the model's."""
    return tensor is not None and tensor.shape == slot.shape and tensor.is_floating_point()


def _unread(model: nn.Module) -> tuple[str, ...]:
    """How the keys begin that the model's modules have in their state dicts and never read."""
    return tuple(
        f"{name}.{key}".removeprefix(".")
        for name, module in model.named_modules()
        for key in getattr(module, "unread", ())
    )
