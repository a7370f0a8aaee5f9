"""Configs: reading them and building what they name."""

import copy
import difflib
import importlib
import inspect
import io
import os
import re
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.config.annotations import misfits
from ldm.config.expansion import check_yaml, resolve
from ldm.config.trust import refuse_foreign_class, refuse_foreign_name, trusting
from ldm.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
IS_CLONE = not (ROOT / "ldm" / "configs").is_dir()  # else an installation, which carries these within
CARRIED = ROOT if IS_CLONE else ROOT / "ldm"
CONFIGS, EMBEDDED = CARRIED / "configs", CARRIED / "checkpoints"
CHECKPOINTS = EMBEDDED if IS_CLONE else Path.cwd() / "checkpoints"  # those that people put there
UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
FREE_UNET = "ldm.modules.diffusionmodules.openaimodel.Free_UNetModel"
FACTORS = ("b1", "b2", "s1", "s2")
FREEU_NAMES = (*FACTORS, "version", "threshold", "match", "strength", "start", "stop", "ramp", "channels")
FREEU = (*FREEU_NAMES, "stages")

# What OmegaConf and YAML raise for contents that they cannot take.
FAULTS = (
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
# Names parted by dots, places in lists in brackets, and a value, which may be empty.
OVERRIDE = re.compile(r"([\w-]+)(\.[\w-]+|\[-?\d+\])*=")


def find_config(name: str | Path) -> Path:
    """The config file of that path, or of that bare name in `configs/`; ".yaml" may be left out."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if os.path.isfile(path):  # noqa: PTH113, as Path.is_file fails on names that are too long
            return path
    known = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, known, n=3)
    there = f"Near it: {', '.join(near)}" if near else f"There are: {', '.join(known)}"
    raise InputError(f"There is no config {str(name)!r}, here or in {CONFIGS}.\n{there}.")


def load_config(name: str | Path, overrides: Iterable[str] = ()) -> DictConfig:
    """The config of a YAML file over that of its `base:`, with overrides put into it, resolved.

    A `base:` is looked for beside the file that names it, then as `find_config` does. Raises InputError.
    """
    path = find_config(name)
    return resolved(read_with_base(path), overrides, source=str(path))


def resolved(config: DictConfig, overrides: Iterable[str] = (), source: str = "The config") -> DictConfig:
    """A copy of a config with overrides (`a.b=1`, `a.b[0]=1`) put into it and its interpolations resolved.

    Raises InputError that names the override at fault, and the config by its `source`.
    """
    config, overrides = copy.deepcopy(config), list(overrides)
    for override in overrides:
        key = OVERRIDE.match(override)
        if key is None:
            raise InputError(
                f"{override!r} is no override key=value. What belongs to a flag goes behind it, in quotes, "
                "as a prompt behind txt2img.py's --prompt."
            )
        if key[1] not in {*config, "checkpoint", "sampling"}:
            raise InputError(
                f"{override!r}: the config has no {key[1]!r}, only {', '.join(map(str, config))}."
            )
        try:
            config.merge_with_dotlist([override])
        except FAULTS as fault:
            raise InputError(f"{source} with {override} cannot be resolved: {_reason(fault)}.") from None
    try:
        resolve(config)
    except FAULTS as fault:
        changed = " ".join([source, "with", *overrides] if overrides else [source])
        raise InputError(f"{changed} cannot be resolved: {_reason(fault)}.") from None
    return config


def read_with_base(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file over its `base:`, not yet resolved; `above` are the files that led to it."""
    if any(path.samefile(other) for other in above):
        ring = " -> ".join(other.name for other in (*above, path))
        raise InputError(f"{path} is its own `base:` ({ring}): take one of them out.")
    try:
        text = decode(path.read_bytes())
        check_yaml(text)
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except AssertionError:  # OmegaConf's, of a number in quotes and no more
        content = None
    except (*FAULTS, OSError) as fault:
        raise InputError(f"{path} is not a YAML config: {_reason(fault)}.") from None
    # OmegaConf takes a bare text for a key without a value.
    if not isinstance(content, dict) or not any(content.values()):
        raise InputError(f"{path} is not a config: it has no `model:` section and describes no U-Net.")

    base = content.pop("base", None)
    config = OmegaConf.create(content)
    if not base:
        return config
    beside = path.parent / str(base)
    try:
        below = beside if os.path.isfile(beside) else find_config(str(base))  # noqa: PTH113, as above
    except InputError as fault:
        raise InputError(f"{path} names a `base:` that is not there. {fault}") from None
    whole = read_with_base(below, (*above, path))
    try:
        whole.merge_with(config)
    except FAULTS as fault:
        raise InputError(f"{path} does not fit its base {below}: {_reason(fault)}.") from None
    return whole


def decode(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 where a mark says so, as Windows writes here and there."""
    return content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


def _reason(fault: Exception) -> str:
    """What is wrong, in one line: the key where OmegaConf knows it, and the message without its appendix."""
    key = getattr(fault, "full_key", None)
    message = " ".join(str(fault).partition("\n    full_key:")[0].split())
    if "cannot start any token" in message:
        message += " (YAML is indented by spaces, never by tabs)"
    return f"{key}: {message}" if key else message


def set_freeu(config: DictConfig, settings: Mapping[str, Any]) -> None:
    """Puts FreeU's `settings` (b1, b2, s1, s2, version, ...) into a model config, on top of those it has.

    A plain U-Net becomes a `Free_UNetModel`; factors that neither names are one. Raises InputError.
    """
    unet = unet_section(config)
    if unet.get("target") == UNET:
        unet.target = FREE_UNET
        unet.params = OmegaConf.merge(dict.fromkeys(FACTORS, 1.0), unet.params)
    try:
        parts = [unet.params, OmegaConf.create(dict(settings))]
        for part in parts:
            # JSON and `stages.64=` have texts for keys, which OmegaConf takes for others than the numbers.
            if isinstance(stages := part.get("stages"), DictConfig):
                part.stages = {int(str(key)) if str(key).isdecimal() else key: stages[key] for key in stages}
        unet.params = OmegaConf.merge(*parts)
    except FAULTS as fault:
        raise InputError(f"The config cannot take FreeU's settings: {_reason(fault)}.") from None


def remove_freeu(config: DictConfig) -> None:
    """Makes the U-Net of a model config the plain one."""
    unet = unet_section(config)
    if unet.get("target") == FREE_UNET:
        unet.target = UNET
        for name in FREEU:
            unet.params.pop(name, None)


def unet_section(config: DictConfig) -> DictConfig:
    """The section of a latent diffusion model's config that describes its U-Net. Raises InputError."""
    unet = OmegaConf.select(config, "model.params.unet_config", throw_on_resolution_failure=False)
    if not isinstance(unet, DictConfig) or not isinstance(unet.get("params"), DictConfig):
        raise InputError("The config describes no U-Net: it has no model.params.unet_config.params.")
    return unet


def get_class(target: str) -> type:
    """The class that a config's `target:` names. Raises InputError, also where only `trusting` would do."""
    module, _, name = str(target).rpartition(".")
    if module:
        refuse_foreign_name(str(target))
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as fault:
        if not f"{module}.".startswith(f"{fault.name}."):
            raise InputError(f"{target} needs the package {fault.name}, which is not installed.") from None
        found = None
    except (ImportError, AttributeError, ValueError):
        found = None
    if not isinstance(found, type):
        raise InputError(_no_class(target))
    refuse_foreign_class(str(target), found)
    return found


def _no_class(target: Any) -> str:
    """What a config's target lacks that leads to no class, and which classes there are where it leads."""
    module, _, _ = str(target).rpartition(".")
    if not str(target).startswith("ldm."):
        return f"The config's target {target!r} is no class; this project's begin with 'ldm.'."
    if module not in sys.modules:
        return f"This project has no module {module!r} for {target!r}; {CONFIGS} shows what it has."
    own = [
        name
        for name, it in vars(sys.modules[module]).items()
        if isinstance(it, type) and it.__module__ == module and not inspect.isabstract(it)
    ]
    there = f"{module} has {', '.join(own)}" if own else f"{CONFIGS} shows what it has"
    return f"This project has no class {target!r}; {there}."


def accepted_parameters(cls: type) -> set[str]:
    """The names that a class's constructor takes, those handed on to its parents by **kwargs included."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters
        names |= parameters.keys() - {"self", "args", "kwargs"}
        if "kwargs" not in parameters:
            break
    return names


def instantiate_from_config(config: Mapping[str, Any], trust_config: bool = False) -> Any:
    """An object of the class that `target` names, made with `params`. Raises InputError.

    Only networks of this project and of torch are built, here and in the sections below, unless
    `trust_config` says that any code the config names may run.
    """
    if not isinstance(config, Mapping) or "target" not in config:
        raise InputError(f"A section of the config has no `target:`; it is {str(config)[:99]}.")
    target, params = config["target"], config.get("params") or {}
    with trusting(trust_config):
        return _build(target, params)


def _build(target: str, params: Any) -> Any:
    """An object of the class that `target` names, made with `params`."""
    cls = get_class(target)
    if not isinstance(params, Mapping):
        raise InputError(f"The params of {target} are {params!r}; they have to be `key: value` lines.")
    if cls.__module__.startswith("ldm."):
        check_names(target, params, accepted_parameters(cls))
        for misfit in misfits(cls, params):
            raise InputError(f"{target}: {misfit}.")
    try:
        return cls(**params)
    except InputError:
        raise
    except ValueError as fault:
        raise InputError(f"{target.rpartition('.')[2]}: {fault}") from fault
    except (
        OmegaConfBaseException,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as fault:
        what = f"{type(fault).__name__}: {fault}".partition("\n")[0]
        raise InputError(f"{target} cannot be made with its params in the config. {what}") from fault


def check_names(target: str, params: Mapping[str, Any], accepted: set[str]) -> None:
    """Raises InputError, with what may have been meant, where a class does not take all of `params`."""
    unknown = sorted(str(name) for name in params if name not in accepted)
    if not unknown:
        return
    if set(unknown) & set(FACTORS):
        hint = f"FreeU's factors belong to {FREE_UNET}."
    elif near := difflib.get_close_matches(unknown[0], accepted, n=1):
        hint = f"Is {near[0]} meant?"
    else:
        hint = "Remove it from the config's params."
    raise InputError(f"{target} knows no parameter {', '.join(unknown)}. {hint}")
